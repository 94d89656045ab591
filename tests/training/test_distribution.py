"""Who runs where: what launchers and specs say, and what must not start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec.predict import Inference
from stereo_core.spec.train import Train
from stereo_core.training import distribution
from stereo_core.training.distribution import Ranks, is_main_process, joined, resolve, single_gpu

TAO = {"WORLD_SIZE": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
PET = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "2",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "127.0.0.1",
    "PET_MASTER_PORT": "29400",
}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("keys", "gpus", "devices"),
    [
        ({}, 4, (0,)),
        ({"num_gpus": 3}, 4, (0, 1, 2)),
        ({"gpu_ids": [1, 3]}, 4, (1, 3)),
        ({"num_gpus": 2, "gpu_ids": [3, 1]}, 4, (3, 1)),
        ({"num_gpus": 2}, 0, (0, 0)),
        ({"num_gpus": 1, "gpu_ids": [0]}, 0, (0,)),  # as TAO's templates write it
        ({"num_gpus": 2, "gpu_ids": [0, 1]}, 0, (0, 0)),
    ],
)
def test_devices_of_a_spec(keys, gpus, devices):
    assert resolve(Train(**keys), "train", gpus, {}) == Ranks(devices, gpus > 0)


@pytest.mark.parametrize(
    ("environment", "gpus", "expected"),
    [
        (TAO, 2, Ranks((0, 1), True, 2, 1, "127.0.0.1", 29500)),
        (TAO | {"NUM_GPU_PER_NODE": "3"}, 4, Ranks((0, 1, 2), True, 2, 1, "127.0.0.1", 29500)),
        (TAO | {"MASTER_PORT": "4000"}, 0, Ranks((0,), False, 2, 1, "127.0.0.1", 4000)),
        ({"RANK": "1"} | {k: v for k, v in TAO.items() if k != "NODE_RANK"}, 1,
         Ranks((0,), True, 2, 1, "127.0.0.1", 29500)),
        ({"WORLD_SIZE": "1", "NODE_RANK": "0"}, 4, Ranks((0, 1, 2, 3), True)),
        ({"RANK": "7"}, 1, Ranks((0,), True)),  # alone it may be anybody's
        (PET, 4, Ranks((0, 1), True, 2, 1, "127.0.0.1", 29400)),
        (PET | {"WORLD_SIZE": "4", "RANK": "2"}, 4, Ranks((0, 1), True, 2, 1, "127.0.0.1", 29400)),  # PyTorchJob's
        (PET | {"PET_NNODES": "2:2", "PET_NPROC_PER_NODE": "auto"}, 3,
         Ranks((0, 1, 2), True, 2, 1, "127.0.0.1", 29400)),
        (TORCHRUN, 8, Ranks((0, 1), True, 2, 1, "node0", 29500, 1)),
        (PET | TORCHRUN, 0, Ranks((0, 0), False, 2, 1, "node0", 29500, 1)),  # torchrun in a TrainJob
    ],
)  # fmt: skip
def test_launchers_variables(environment, gpus, expected):
    """WORLD_SIZE counts nodes, and behind torchrun processes."""
    assert resolve(Train(), "train", gpus, environment) == expected


def test_processes_on_a_cpu_are_as_many_as_the_cores_that_may_be_used(monkeypatch):
    """A container's, not the machine's."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3, 5}, raising=False)
    environment = PET | {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "cpu"}
    assert resolve(Train(), "train", 0, environment).devices == (0, 0, 0)


def test_ranks_are_numbered_node_by_node():
    ranks = [resolve(Train(), "train", 0, TORCHRUN | {"RANK": str(r), "LOCAL_RANK": str(r % 2)}) for r in range(4)]
    assert [x.rank for x in ranks] == [0, 1, 2, 3] and {x.world for x in ranks} == {4}
    assert resolve(Train(gpu_ids=[5, 6]), "train", 8, TORCHRUN).device == "cuda:6"


@pytest.mark.parametrize(
    ("environment", "keys", "gpus", "message"),
    [
        ({}, {"num_gpus": 3, "gpu_ids": [0, 1]}, 4, r"train.num_gpus: 3, but train.gpu_ids names 2: \[0, 1\]"),
        ({}, {"gpu_ids": [1, 1]}, 4, r"train.gpu_ids: \[1, 1\] names a GPU twice"),
        ({}, {"gpu_ids": [7]}, 0, "train.gpu_ids: GPU 7 is requested, but this machine has none .*; remove the key"),
        ({}, {"gpu_ids": [2, 3]}, 0, "train.gpu_ids: GPU 3 is requested, but this machine has none"),
        ({}, {"num_gpus": 3}, 2, "GPU 2 is requested, but this machine has 2, from 0 to 1"),
        (TAO | {"NUM_GPU_PER_NODE": "3"}, {}, 2, "NUM_GPU_PER_NODE: '3' is not a number from 1 to 2"),
        (TAO | {"NODE_RANK": "2"}, {}, 1, "NODE_RANK: '2' is not a number from 0 to 1: WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, {}, 1, "NODE_RANK is not set"),
        ({"NODE_RANK": "1"}, {}, 1, "NODE_RANK: '1' is not a number from 0 to 0: WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "NODE_RANK": "0"}, {}, 1, "MASTER_ADDR is not set, but there are 2 nodes"),
        ({"NODE_RANK": "0"}, {"num_nodes": 2}, 1, "MASTER_ADDR is not set, but there are 2 nodes"),
        (TAO | {"MASTER_PORT": "80"}, {}, 1, "MASTER_PORT: '80' is not a number from 1024 to 65535"),
        (TAO | {"MASTER_PORT": "9" * 5000}, {}, 1, "MASTER_PORT: '9+' is not a number"),
        (TAO | {"WORLD_SIZE": "two"}, {}, 1, "WORLD_SIZE: 'two' is not a number from 1"),
        (TAO | {"MASTER_ADDR": "no such host"}, {}, 1, "MASTER_ADDR: cannot resolve no such host"),
        (PET | {"PET_NNODES": "1:2"}, {}, 4, "PET_NNODES: 1:2 is a range, but a run needs a fixed number of nodes"),
        (PET | {"PET_NPROC_PER_NODE": "gpu"}, {}, 0, "PET_NPROC_PER_NODE is gpu, but this machine has no GPU"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {}, 1, "LOCAL_WORLD_SIZE is not set"),
        (TORCHRUN | {"WORLD_SIZE": "5"}, {}, 2, "WORLD_SIZE is 5, which is no multiple of LOCAL_WORLD_SIZE 2"),
    ],
)
def test_a_misconfigured_node_does_not_run_alone(environment, keys, gpus, message, monkeypatch):
    """TAO's item 50: there it falls back to one node."""
    monkeypatch.setattr(distribution, "_RESOLVE_SECONDS", 0)
    with pytest.raises(SpecError, match=message):
        resolve(Train(**keys), "train", gpus, environment)


@pytest.mark.parametrize(("ids", "gpus"), [([7], 0), ([2], 2)])
def test_one_gpu_that_is_not_there_is_refused(ids, gpus):
    """inference ran on the CPU, or failed in torch."""
    with pytest.raises(SpecError, match=f"inference.gpu_ids: GPU {ids[0]} is requested, but this machine has (none|2)"):
        single_gpu(Inference(gpu_ids=ids), "inference", gpus)
    assert single_gpu(Inference(), "inference", 0) == 0 and single_gpu(Inference(gpu_ids=[1]), "inference", 2) == 1
    assert single_gpu(Inference(gpu_ids=[7], trt_engine="e"), "inference", 0) == 7  # the engine's library says it


def test_node_0_needs_its_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        environment = TAO | {"NODE_RANK": "0", "MASTER_PORT": str(taken.getsockname()[1])}
        with pytest.raises(SpecError, match=r"MASTER_PORT: cannot use port \d+ of this node"):
            resolve(Train(), "train", 0, environment)
    assert resolve(Train(), "train", 0, environment).node == 0


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        (TAO, False),
        (TAO | {"NODE_RANK": "0"}, True),
        (PET, False),
        (TORCHRUN, False),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, True),
        (TORCHRUN | {"RANK": "2", "LOCAL_RANK": "0"}, False),  # the first of the second node
        ({"RANK": "1"}, True),
    ],
)
def test_one_process_of_all_writes_reports(environment, main):
    assert is_main_process(environment) == main


# ---- nodes that do not meet


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("node", "words"), [(0, "only 1 of 2 processes joined at 127.0.0.1:"), (1, "could not reach node 0 at 127.0.0.1:")]
)
def test_a_node_does_not_wait_for_ever(closed_port, node, words):
    alone = Ranks(nodes=2, node=node, port=closed_port, local=0)
    with pytest.raises(SpecError, match=words) as told, joined(alone, seconds=1):
        raise AssertionError("it must not train alone")
    assert "MASTER_ADDR" in str(told.value)


def test_another_program_at_node_0s_port_is_not_waited_for():
    def hang_up(server):
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=hang_up, args=(other,), daemon=True).start()
        alone = Ranks(nodes=2, node=1, port=other.getsockname()[1], local=0)
        with pytest.raises(SpecError, match="does not belong to this run"), joined(alone, seconds=1):
            raise AssertionError("it must not train alone")


def test_a_waiting_node_hears_sigterm(closed_port):
    class Heard(Exception):
        pass

    def hear(*_):
        raise Heard

    before = signal.signal(signal.SIGTERM, hear)
    try:
        threading.Thread(target=lambda: (time.sleep(0.7), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
        with pytest.raises(Heard), joined(Ranks(nodes=2, node=1, port=closed_port, local=0), seconds=60):
            raise AssertionError("it must not train alone")
    finally:
        signal.signal(signal.SIGTERM, before)
