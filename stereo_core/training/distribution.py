"""The processes of a run: how many, on which nodes and devices, and their communication.

The first of these sources that is present decides:

1. torchrun, if LOCAL_RANK, LOCAL_WORLD_SIZE or TORCHELASTIC_RUN_ID is set: this process is one of WORLD_SIZE
   *processes*, and starts no others.
2. Kubeflow Trainer, if PET_NNODES is set: PET_NNODES nodes, PET_NPROC_PER_NODE processes on each (a number, or
   torchrun's auto, gpu, cpu), PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT.
3. TAO's variables: WORLD_SIZE *nodes*, NUM_GPU_PER_NODE processes on each (all GPUs of the node if it is not set),
   NODE_RANK or RANK, MASTER_ADDR, MASTER_PORT.
4. The spec, for values that no variable sets: num_nodes, num_gpus and gpu_ids.

Without a GPU the same number of processes runs on the CPU. torch is imported only where it is used, so that the command
line can resolve its rank without it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from stereo_core.cores import usable_cores
from stereo_core.errors import SpecError
from stereo_core.values import counted, digits

if TYPE_CHECKING:
    from torch import Tensor

_TORCHRUN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
_RESOLVE_SECONDS = 30  # a pod's name may become resolvable only after another node's pod has started
_MEET_SECONDS = 600  # a node may still be pulling the image
_POLL_SECONDS = 0.5
_PORT = 29500


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; every node has the same number.

    Attributes:
        devices: the GPU of each process of this node; zeros without GPUs.
        gpu: whether GPUs are used.
        nodes, node: number of nodes, and index of this one.
        address, port: where the first process listens; port 0 on a single node: any free one.
        local: index of this process on its node; None in the process that starts the others.
    """

    devices: tuple[int, ...] = (0,)
    gpu: bool = False
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    local: int | None = None

    @property
    def world(self) -> int:
        return self.nodes * len(self.devices)

    @property
    def rank(self) -> int:
        return self.node * len(self.devices) + (self.local or 0)

    @property
    def device(self) -> str:
        """The device's name in torch."""
        return f"cuda:{self.devices[self.local or 0]}" if self.gpu else "cpu"

    def __str__(self) -> str:
        nodes = f"{counted(self.nodes, 'node')} with " if self.nodes > 1 else ""
        where = (
            f"on GPU {', '.join(map(str, self.devices))}"
            if self.gpu
            else "on the CPU (gloo) because this machine has no GPU"
        )
        return f"{nodes}{counted(len(self.devices), 'process', 'processes')} {where}"


@dataclass(frozen=True)
class _Names:
    """The names of a launcher's environment variables."""

    nodes: str
    node: str
    count: str
    address: str
    port: str


_PET = _Names("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT")
_TAO = _Names("WORLD_SIZE", "NODE_RANK", "NUM_GPU_PER_NODE", "MASTER_ADDR", "MASTER_PORT")


def resolve(section: Any, name: str, gpus: int, environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes of a run, by the rules above.

    Args:
        section: `train` or `evaluate` of a spec: num_nodes, num_gpus, gpu_ids.
        name: name of the section in messages.
        gpus: number of GPUs of this machine.

    Raises:
        SpecError: a variable or key is missing, out of range or contradicts another; a node that cannot find the
            others never runs alone.
    """
    if any(key in environment for key in _TORCHRUN):
        return _from_torchrun(section, name, gpus, environment)
    names = _PET if _PET.nodes in environment else _names_of_tao(environment)
    nodes = _nodes(environment, names, section.num_nodes)
    node = 0
    if nodes > 1 or names.node in environment:
        mend = f"{names.nodes} (number of nodes) is {nodes}; set a different number on each node, starting at 0"
        node = _number(environment, names.node, 0, nodes - 1, mend)
    devices = _devices(section, name, gpus, *_count(environment, names, gpus))
    if nodes == 1:
        return Ranks(devices, gpus > 0)
    address = environment.get(names.address)
    if not address:
        raise SpecError(f"{names.address} is not set, but there are {nodes} nodes; set it to the address of node 0")
    port = _number(environment, names.port, 1024, 65535, "every node needs the same free port of node 0", _PORT)
    _reach(names, address, port)
    if node == 0:
        _bind(names, port)
    return Ranks(devices, gpus > 0, nodes, node, address, port)


def is_main_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process writes reports or starts the one that does: rank 0 of the first node."""
    if any(key in environment for key in _TORCHRUN):
        return environment.get("RANK", "0") == "0"
    names = _PET if _PET.nodes in environment else _names_of_tao(environment)
    return environment.get(names.node, "0") == "0"


def is_one_of_several(section: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a run has several nodes, or processes that torchrun started, by the rules above.

    Raises:
        SpecError: a launcher's number of nodes is invalid.
    """
    if any(key in environment for key in _TORCHRUN):
        return True
    names = _PET if _PET.nodes in environment else _names_of_tao(environment)
    return _nodes(environment, names, section.num_nodes) > 1


def _from_torchrun(section: Any, name: str, gpus: int, environment: Mapping[str, str]) -> Ranks:
    mend = f"torchrun sets it, and one of {', '.join(_TORCHRUN)} is set; unset those to run without torchrun"
    local_world = _number(environment, "LOCAL_WORLD_SIZE", 1, None, mend)
    local = _number(environment, "LOCAL_RANK", 0, local_world - 1, mend)
    world = _number(environment, "WORLD_SIZE", local_world, None, mend)
    rank = _number(environment, "RANK", 0, world - 1, mend)
    if world % local_world:
        raise SpecError(
            f"WORLD_SIZE is {world}, which is no multiple of LOCAL_WORLD_SIZE {local_world}; start the same "
            "number of processes on each node"
        )
    address = environment.get("MASTER_ADDR")
    if not address:
        raise SpecError(f"MASTER_ADDR is not set; {mend}")
    port = _number(environment, "MASTER_PORT", 1, 65535, mend)
    devices = _devices(section, name, gpus, local_world, "LOCAL_WORLD_SIZE (torchrun --nproc-per-node)")
    return Ranks(devices, gpus > 0, world // local_world, rank // local_world, address, port, local)


def _names_of_tao(environment: Mapping[str, str]) -> _Names:
    """TAO's variables. RANK may replace NODE_RANK, but only together with WORLD_SIZE, because its name is too
    common."""
    if "NODE_RANK" not in environment and {"WORLD_SIZE", "RANK"} <= set(environment):
        return _Names(_TAO.nodes, "RANK", _TAO.count, _TAO.address, _TAO.port)
    return _TAO


def _nodes(environment: Mapping[str, str], names: _Names, default: int) -> int:
    text = environment.get(names.nodes, str(default))
    least, _, most = text.partition(":")  # torchrun's syntax of an elastic job
    if most and most != least:
        raise SpecError(f"{names.nodes}: {text} is a range, but a run needs a fixed number of nodes; set {most}:{most}")
    return _number({names.nodes: least}, names.nodes, 1, None, "it is the number of nodes")


def _count(environment: Mapping[str, str], names: _Names, gpus: int) -> tuple[int | None, str]:
    """(processes on this node, the variable that sets it); None if only the spec sets it."""
    text = environment.get(names.count)
    if text is None:
        everything = names.nodes in environment and gpus
        return (gpus, names.nodes) if everything else (None, "")
    if text == "gpu" and not gpus:
        raise SpecError(f"{names.count} is gpu, but this machine has no GPU; set it to a number, cpu or auto")
    if text in ("auto", "gpu", "cpu"):
        return (gpus if gpus and text != "cpu" else usable_cores()), names.count
    return _number(environment, names.count, 1, gpus or None, f"this machine has {counted(gpus, 'GPU')}"), names.count


def _devices(section: Any, name: str, gpus: int, count: int | None, source: str) -> tuple[int, ...]:
    """One device per process; a number in the environment takes precedence over the spec's."""
    ids, num_gpus = list(section.gpu_ids), section.num_gpus
    if len(set(ids)) != len(ids):
        raise SpecError(f"{name}.gpu_ids: {ids} names a GPU twice; remove the duplicate")
    if count is None and len(ids) != num_gpus and ids != [0] and num_gpus != 1:
        raise SpecError(f"{name}.num_gpus: {num_gpus}, but {name}.gpu_ids names {len(ids)}: {ids}; set one of them")
    number = count or max(num_gpus, len(ids))
    if len(ids) != number:
        ids = list(range(number))
    if gpus:
        check_gpus(source or f"{name}.num_gpus, {name}.gpu_ids", ids, gpus)
        return tuple(ids)
    if not getattr(section, "trt_engine", ""):
        check_gpus(f"{name}.gpu_ids", [index for index in ids if index >= number], gpus)
    return (ids[0],) if number == 1 else (0,) * number


def single_gpu(section: Any, name: str, gpus: int) -> int:
    """The GPU of a run that uses one: the first of gpu_ids.

    Args: as `resolve`. Raises: SpecError if it does not exist.
    """
    first: int = section.gpu_ids[0]
    if gpus or not getattr(section, "trt_engine", ""):
        check_gpus(f"{name}.gpu_ids", [first], gpus)
    return first


def check_gpus(key: str, ids: Sequence[int], gpus: int) -> None:
    """Raise SpecError, which names `key`, unless the machine has all these GPUs.

    GPU 0, the default, always passes: without a GPU it stands for the CPU. Engines are not checked without a GPU: their
    library may use one that PyTorch does not see.
    """
    missing = max(ids, default=0)
    if missing and missing >= gpus:
        there = (
            f"{gpus}, from 0 to {gpus - 1}"
            if gpus
            else "none that PyTorch can use; remove the key to run on the CPU, or check driver and CUDA_VISIBLE_DEVICES"
        )
        raise SpecError(f"{key}: GPU {missing} is requested, but this machine has {there}")


def _number(
    environment: Mapping[str, str], name: str, least: int, most: int | None, mend: str, default: int | None = None
) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    wanted = f"a number from {least} to {most}" if most is not None else f"a number from {least}"
    if text is None:
        raise SpecError(f"{name} is not set; it must be {wanted}: {mend}")
    number = digits(text)
    if number is None or number < least or (most is not None and number > most):
        raise SpecError(f"{name}: {text!r} is not {wanted}: {mend}")
    return number


def _reach(names: _Names, address: str, port: int) -> None:
    end = time.monotonic() + _RESOLVE_SECONDS
    while True:
        try:
            socket.getaddrinfo(address, port)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > end:
                raise SpecError(
                    f"{names.address}: cannot resolve {address} ({error}); set it to a name or address of node 0"
                ) from None
            time.sleep(0.5)


def _bind(names: _Names, port: int) -> None:
    """Check that the port is free on node 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise SpecError(f"{names.port}: cannot use port {port} of this node ({error}); choose another") from None


# ---- among the processes


@contextlib.contextmanager
def joined(ranks: Ranks, backend: str | None = None, seconds: float = _MEET_SECONDS) -> Iterator[None]:
    """Join the processes of a run; a single process joins nothing.

    Args:
        backend: nccl or gloo; by default the one that fits the devices.
        seconds: how long nodes wait for each other.

    Raises:
        SpecError: not all nodes joined in time.
    """
    if ranks.world == 1:
        yield
        return
    import torch

    if ranks.gpu:
        torch.cuda.set_device(ranks.device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // len(ranks.devices)))
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun synchronises its processes itself
    if ranks.nodes > 1 and not by_torchrun:
        place = {"store": _rendezvous(ranks, seconds)}
    else:
        place = {"init_method": f"tcp://{ranks.address}:{ranks.port}"}
    backend = backend or ("nccl" if ranks.gpu else "gloo")
    torch.distributed.init_process_group(backend, **place, world_size=ranks.world, rank=ranks.rank)
    yield
    torch.distributed.destroy_process_group()  # not after an error: it may wait for a dead process


def _rendezvous(ranks: Ranks, seconds: float) -> Any:
    """Wait until all processes of all nodes have joined; return the store through which they find each other.

    torch's own wait cannot be interrupted by SIGTERM.

    Raises:
        SpecError: node 0 cannot be reached, or other nodes did not join.
    """
    from torch.distributed import DistError, TCPStore

    where, end = f"{ranks.address}:{ranks.port}", time.monotonic() + seconds
    mend = "set MASTER_ADDR and MASTER_PORT (Kubeflow Trainer: PET_*) to those of node 0 on all nodes; start them all"
    while ranks.rank:
        try:
            socket.create_connection((ranks.address, ranks.port), timeout=_POLL_SECONDS).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                raise SpecError(f"could not reach node 0 at {where} for {seconds:g} s ({error}); {mend}") from None
            time.sleep(_POLL_SECONDS)
    try:
        answer = timedelta(seconds=min(seconds, _RESOLVE_SECONDS))
        store = TCPStore(ranks.address, ranks.port, ranks.world, ranks.rank == 0, answer, wait_for_workers=False)
        store.add("here", 1)
        while (here := store.add("here", 0)) < ranks.world:
            if time.monotonic() > end:
                raise SpecError(
                    f"only {here} of {ranks.world} processes joined at {where} within {seconds:g} s; {mend}"
                )
            time.sleep(_POLL_SECONDS)
    except DistError as error:
        why = str(error).splitlines()[0]
        raise SpecError(f"node 0 at {where} does not belong to this run ({why}); {mend}") from None
    store.set_timeout(timedelta(seconds=_MEET_SECONDS))
    return store


def number_of_ranks() -> int:
    """Number of joined processes; 1 outside `joined`."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(values: Tensor) -> Tensor:
    """Sum over all ranks; the tensor itself with a single rank."""
    if number_of_ranks() == 1:
        return values
    from torch import distributed

    values = values.clone()
    distributed.all_reduce(values)
    return values


def gathered(items: Sequence[Any]) -> list[Any]:
    """The items of all ranks, in rank order, on every rank; they are pickled for transfer."""
    if number_of_ranks() == 1:
        return list(items)
    from torch import distributed

    parts: list[Any] = [None] * number_of_ranks()
    distributed.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with those of rank 0."""
    if number_of_ranks() > 1:
        from torch import distributed

        for tensor in tensors:
            distributed.broadcast(tensor, 0)
