"""TensorRT and TensorRT-RTX: one code path, the library is a parameter; LIBRARIES holds what differs.

Networks are strongly typed (the only kind of TensorRT 11 and TensorRT-RTX): the graph says which type each layer
computes in. fp16 and bf16 are written into the graph first (`precision.lower_precision`); int8 and fp8 need a file that
quantises itself. TF32 is off in every engine, so that float32 is float32.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stereo_core.engines.base import BuildSettings, Engine
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
from stereo_core.errors import ModelError, SpecError, UserError
from stereo_core.files import atomic_path

LOG = logging.getLogger(__name__)

GIB = 2**30
Capability = tuple[int, int]
"""A GPU generation: (8, 6) is 8.6."""

# The oldest GPUs that compute in a type; everything else runs on all that the libraries support.
LEAST_CAPABILITY: dict[str, Capability] = {"bf16": (8, 0), "fp8": (8, 9)}


@dataclass(frozen=True)
class Library:
    """What differs between the two libraries.

    Attributes:
        module: the Python module.
        extra: the extra of this package that installs it.
        title: its name in texts.
        suffix: the end of its engines' file names.
        ahead_of_time: it builds for compute capabilities, without a GPU; else for the GPU that it finds.
        timing_cache: it measures layers on the GPU and can remember the times.
    """

    module: str
    extra: str
    title: str
    suffix: str
    ahead_of_time: bool
    timing_cache: bool


LIBRARIES = {
    "tensorrt": Library("tensorrt", "tensorrt", "TensorRT", ".engine", False, True),
    "tensorrt_rtx": Library("tensorrt_rtx", "tensorrt-rtx", "TensorRT-RTX", ".rtx.engine", True, False),
}


def backend(name: str) -> TensorRT:
    """The backend "tensorrt" or "tensorrt_rtx"."""
    return TensorRT(LIBRARIES[name])


class TensorRT:
    """See `stereo_core.engines.base.Backend`."""

    precisions = ("fp32", "fp16", "bf16", "int8", "fp8")

    def __init__(self, library: Library):
        self.library = library
        self.suffix = library.suffix

    def why_not_here(self, settings: BuildSettings) -> str | None:
        if not self._installed():
            return self._how_to_install()
        if self.library.ahead_of_time and settings.compute_capabilities:
            return None
        gpu = find_gpu(settings.gpu_id)
        why = gpu if isinstance(gpu, str) else self._why_not_gpu(gpu)
        if why and self.library.ahead_of_time:
            why += "; set gen_trt_engine.compute_capabilities to the GPUs the engine is for, as [8.9]"
        return why

    def build(self, onnx: Path, out: Path, info: dict, settings: BuildSettings) -> dict:
        """See Backend.build.

        Raises:
            SpecError: GPUs the library does not build for, or which have no such precision; pins that fit no layer.
            ModelError: the parser refuses nodes of the file, or reads other inputs than the side-car says, or a GPU has
                no matrix products of the graph's type.
            RuntimeError: the builder failed.
        """
        trt = self._module()
        gpu = find_gpu(settings.gpu_id)
        targets = self._targets(trt, settings, gpu)
        _check_capabilities(self.library, info["precision"], targets)
        stop = threading.Event()

        def work() -> Any:
            with _on(gpu, settings.gpu_id):
                return self._build(trt, onnx, info, settings, targets, gpu, stop)

        serialized = _in_a_thread(work, stop)
        out.write_bytes(serialized)
        return {"backend_version": trt.__version__, "target": self._target_text(targets, gpu)}

    def why_not_runnable(self, info: dict, device: Any = None) -> str | None:
        if not self._installed():
            return self._how_to_install()
        version = self._module().__version__
        built = f"built by {self.library.module} {info['backend_version']} for {info['target']}"
        if info["backend_version"] != version:
            return f"{built}; this machine has {self.library.module} {version}"
        gpu = find_gpu(_gpu_id(device))
        if isinstance(gpu, str):
            return f"{built}; {gpu}"
        if gpu.capability not in capabilities_of(info["target"]):
            return f"{built}; this machine has a {gpu.name} of compute capability {_dotted(gpu.capability)}"
        return self._why_not_gpu(gpu)

    def load(self, path: Path, info: dict, device: Any) -> TensorRTEngine:
        """See Backend.load.

        Raises:
            ModelError: the engine was built by another version or for another GPU, or is not what its side-car says.
            UserError: `device` is not a GPU of this machine.
        """
        why = self.why_not_runnable(info, device)
        if why:
            raise ModelError(f"{path}: {why}; build it again, here, from its ONNX file")
        return TensorRTEngine(self._module(), path, info, _gpu_id(device))

    def _installed(self) -> bool:
        return importlib.util.find_spec(self.library.module) is not None

    def _how_to_install(self) -> str:
        return f"{self.library.title} is not installed: pip install 'stereo-pipelines[{self.library.extra}]'"

    def _module(self) -> Any:
        return importlib.import_module(self.library.module)

    def _why_not_gpu(self, gpu: Gpu) -> str | None:
        if not self.library.ahead_of_time:
            old = gpu.capability < (7, 5)
            return f"{self.library.title} needs compute capability 7.5, {gpu.text} is older" if old else None
        known = _known_capabilities(self._module())
        if gpu.capability in known:
            return None
        return f"{self.library.title} does not run on {gpu.text}, only on {', '.join(map(_dotted, known))}"

    def _targets(self, trt: Any, settings: BuildSettings, gpu: Gpu | str) -> list[Capability]:
        asked = [_parse_capability(text) for text in settings.compute_capabilities]
        here = None if isinstance(gpu, str) else gpu.capability
        if self.library.ahead_of_time and asked:
            known = _known_capabilities(trt)
            unknown = [capability for capability in asked if capability not in known]
            if unknown:
                raise SpecError(
                    f"gen_trt_engine.compute_capabilities: {self.library.title} does not build for "
                    f"{', '.join(map(_dotted, unknown))}, only for {', '.join(map(_dotted, known))}"
                )
            return sorted(set(asked))
        why = self.why_not_here(settings)
        if why:
            raise SpecError(f"gen_trt_engine.backend: {why}")
        if asked and asked != [here]:
            raise SpecError(
                f"gen_trt_engine.compute_capabilities: {self.library.title} builds for the GPU of this machine only, "
                f"{gpu.text}; build on the GPU that the engine is for, or with the backend tensorrt_rtx"
            )
        return [here]

    def _target_text(self, targets: list[Capability], gpu: Gpu | str) -> str:
        if not self.library.ahead_of_time:
            return gpu.text
        word = "compute capability" if len(targets) == 1 else "compute capabilities"
        return f"{word} {', '.join(map(_dotted, targets))}"

    def _build(self, trt, onnx: Path, info: dict, settings: BuildSettings, targets, gpu, stop: threading.Event) -> Any:
        log = _logger(trt, settings.verbose)
        builder = trt.Builder(log)
        # Accepted and without effect where every network is strongly typed.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        _parse(parser, onnx, info, settings)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        profile = _profile(builder, network, info)
        config.add_optimization_profile(profile)
        _refuse_difference(onnx, interface_of_network(trt, network, profile), interface_of_info(info))
        if self.library.ahead_of_time:
            config.num_compute_capabilities = len(targets)
            for index, (major, minor) in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{major}{minor}"), index)
        limit = workspace_bytes(settings.workspace_gib, None if isinstance(gpu, str) else gpu.memory)
        if limit is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
        cache = settings.timing_cache if self.library.timing_cache else None
        fits = cache is not None and attach_timing_cache(config, cache)
        with _progress(trt, stop) as monitor:
            config.progress_monitor = monitor
            serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise _build_error(self.library, log.said())
        if fits:
            with atomic_path(cache) as temporary:
                temporary.write_bytes(config.get_timing_cache().serialize())
        return serialized


class TensorRTEngine(Engine):
    """An engine on one GPU, with its own CUDA stream. Runs raise RuntimeError where TensorRT reports a failure."""

    def __init__(self, trt: Any, path: Path, info: dict, gpu_id: int):
        import torch

        super().__init__(info)
        self.device = f"cuda:{gpu_id}"
        self._log = _logger(trt, verbose=False)
        with torch.cuda.device(self.device):
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise ModelError(f"{path}: {trt.__name__} can not read it ({self._log.said()}); build it again")
            _refuse_difference(path, interface_of_engine(trt, self._engine), interface_of_info(info))
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise RuntimeError(f"{path}: no execution context: {self._log.said()}")
            self._stream = torch.cuda.Stream()
        self.runtime = f"{trt.__name__} {trt.__version__}, {torch.cuda.get_device_name(self.device)}"

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        import torch

        images = (torch.from_numpy(x).to(self.device) for x in (left_B3HW, right_B3HW))
        return self.run_torch(*images).cpu().numpy()

    def run_torch(self, left_B3HW: Any, right_B3HW: Any) -> Any:
        """The tensors' own memory is given to TensorRT; the run is done when this returns."""
        import torch

        with torch.cuda.device(self.device):
            # All memory belongs to the caller's stream: what is freed there is not written to here any more.
            images = {LEFT: left_B3HW.contiguous(), RIGHT: right_B3HW.contiguous()}
            for name, image in images.items():
                shape = tuple(image.shape)
                self._insist(self._context.set_input_shape(name, shape), f"{name} of {shape}")
            disparity = torch.empty(tuple(self._context.get_tensor_shape(DISPARITY)), device=self.device)
            for name, tensor in (images | {DISPARITY: disparity}).items():
                self._insist(self._context.set_tensor_address(name, tensor.data_ptr()), f"the memory of {name}")
            self._stream.wait_stream(torch.cuda.current_stream())
            self._insist(self._context.execute_async_v3(self._stream.cuda_stream), "the run")
            self._stream.synchronize()
        return without_channel(disparity)

    def _insist(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT refuses {what}: {self._log.said() or 'it gives no reason'}")


# --- GPUs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine; `memory` in bytes."""

    name: str
    capability: Capability
    memory: int

    @property
    def text(self) -> str:
        return f"{self.name}, compute capability {_dotted(self.capability)}"


def find_gpu(gpu_id: int) -> Gpu | str:
    """The GPU of a number, or the reason why there is none, for the user. PyTorch is asked."""
    try:
        import torch
    except ImportError:
        return "PyTorch, which finds and feeds the GPU, is not installed"
    if not torch.cuda.is_available():
        return f"there is no GPU here that PyTorch {torch.__version__} can use"
    if gpu_id >= torch.cuda.device_count():
        return f"GPU {gpu_id} is not here; GPUs 0 to {torch.cuda.device_count() - 1} are"
    found = torch.cuda.get_device_properties(gpu_id)
    return Gpu(found.name, (found.major, found.minor), found.total_memory)


def capabilities_of(target: str) -> list[Capability]:
    """The compute capabilities that a side-car's `target` names."""
    return [_parse_capability(text) for text in re.findall(r"\d+\.\d+", target.partition("compute capabilit")[2])]


def _known_capabilities(trt: Any) -> list[Capability]:
    """What TensorRT-RTX builds for: SM86 is 8.6, SM120 is 12.0."""
    names = [re.fullmatch(r"SM(\d+)(\d)", name) for name in trt.ComputeCapability.__members__]
    return sorted((int(found[1]), int(found[2])) for found in names if found)


def _parse_capability(text: str) -> Capability:
    found = re.fullmatch(r"(\d+)\.(\d)", text.strip())
    if not found:
        raise SpecError(f"gen_trt_engine.compute_capabilities: {text!r} is not a compute capability such as 8.6")
    return int(found[1]), int(found[2])


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


def _check_capabilities(library: Library, precision: str, targets: Sequence[Capability]) -> None:
    least = LEAST_CAPABILITY.get(precision, (0, 0))
    too_old = [target for target in targets if target < least]
    if too_old:
        possible = [p for p in TensorRT.precisions if LEAST_CAPABILITY.get(p, (0, 0)) <= min(targets)]
        raise SpecError(
            f"gen_trt_engine.tensorrt.data_type: {precision} needs compute capability {_dotted(least)} or higher, not "
            f"{', '.join(map(_dotted, too_old))}; {library.title} builds {', '.join(possible)} for it"
        )


def _gpu_id(device: Any) -> int:
    name, _, index = str(device or "cuda").partition(":")
    if name != "cuda" or not (index or "0").isdigit():
        raise UserError(f"device {device}: a TensorRT engine runs on cuda or cuda:N only")
    return int(index or 0)


def _on(gpu: Gpu | str, gpu_id: int) -> contextlib.AbstractContextManager:
    """TensorRT builds on CUDA's current device."""
    if isinstance(gpu, str):
        return contextlib.nullcontext()
    import torch

    return torch.cuda.device(gpu_id)


# --- From file to network ---------------------------------------------------------------------------------------------


def _parse(parser: Any, onnx: Path, info: dict, settings: BuildSettings) -> None:
    content = onnx.read_bytes()
    if info["precision"] in ("fp16", "bf16"):
        import onnx as onnx_library

        from stereo_core.engines.precision import lower_precision

        lowered = lower_precision(onnx_library.load(onnx), info["precision"], settings.layers_precision)
        content = lowered.SerializeToString()
    if not parser.parse(content, str(onnx)) or parser.num_errors:
        raise ModelError(f"{onnx}: TensorRT's parser refuses it: {_parser_errors(parser)}")


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)


Interface = dict[str, tuple[tuple[int, ...], ...]]
"""Name of an input -> its shapes: smallest, the one tuned for, largest. Name of an output -> nothing."""


def interface_of_info(info: dict) -> Interface:
    """What a side-car says of an engine's inputs and outputs."""
    batches, heights, widths = (
        (info[f"min_{side}"], info[opt], info[f"max_{side}"])
        for side, opt in (("batch", "opt_batch"), ("height", "input_height"), ("width", "input_width"))
    )
    shapes = tuple((batch, 3, height, width) for batch, height, width in zip(batches, heights, widths, strict=True))
    return {LEFT: shapes, RIGHT: shapes, DISPARITY: ()}


def interface_of_network(trt: Any, network: Any, profile: Any) -> Interface:
    """What was read from the ONNX file, and the profile it is built with."""
    found: Interface = {}
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        shapes = profile.get_shape(tensor.name) if -1 in shape else (shape,) * 3
        found[tensor.name] = tuple(map(tuple, shapes))
        _refuse_type(trt, tensor.name, tensor.dtype)
    for tensor in (network.get_output(index) for index in range(network.num_outputs)):
        found[tensor.name] = ()
        _refuse_type(trt, tensor.name, tensor.dtype)
    return found


def interface_of_engine(trt: Any, engine: Any) -> Interface:
    """What a deserialised engine takes and gives."""
    found: Interface = {}
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = tuple(map(tuple, engine.get_tensor_profile_shape(name, 0))) if is_input else ()
        _refuse_type(trt, name, engine.get_tensor_dtype(name))
    return found


def _refuse_type(trt: Any, name: str, kind: Any) -> None:
    if kind != trt.DataType.FLOAT:
        raise ModelError(f"{name} is {kind}, not float32: not an engine of this product")


def _refuse_difference(path: Path, found: Interface, expected: Interface) -> None:
    if found != expected:
        raise ModelError(f"{path}: its inputs and outputs are {found}, where {expected} was expected; build it again")


def _profile(builder: Any, network: Any, info: dict) -> Any:
    profile = builder.create_optimization_profile()
    wanted = interface_of_info(info)
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *wanted[tensor.name])
    return profile


# --- Build settings ---------------------------------------------------------------------------------------------------


def workspace_bytes(gib: int | None, device_memory: int | None) -> int | None:
    """Scratch memory that the builder may use, in bytes; None: no limit. At most the GPU's memory, with a warning."""
    if gib is None:
        return None
    if device_memory is not None and gib * GIB > device_memory:
        LOG.warning(
            "gen_trt_engine.tensorrt.workspace_size: %d GiB is more than the GPU has; its %.1f GiB are the limit",
            gib,
            device_memory / GIB,
        )
        return device_memory
    return gib * GIB


def attach_timing_cache(config: Any, path: Path) -> bool:
    """Give the builder the measured times in `path`, or an empty cache where there is no such file.

    Returns:
        False, after a warning, where the file is of another GPU or version or damaged: it is neither used nor changed.
    """
    content = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(content)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return True
    LOG.warning(
        "gen_trt_engine.timing_cache: %s is of another GPU or version, or damaged; it is ignored and left as it is",
        path,
    )
    return False


def _build_error(library: Library, said: str) -> Exception:
    """The exception for the errors that the builder logged."""
    if "FP32 GEMM is not supported" in said:
        return ModelError(
            f"{library.title} has no float32 matrix products for compute capability 7.5 (Turing); build them in fp16: "
            'gen_trt_engine.tensorrt.data_type=fp16 gen_trt_engine.tensorrt.layers_precision=["*MatMul*:fp16"]. It '
            f"said: {said}"
        )
    return RuntimeError(f"{library.title} could not build the engine: {said or 'it gives no reason'}")


# --- What the libraries say while they work ---------------------------------------------------------------------------


def _logger(trt: Any, verbose: bool) -> Any:
    """A TensorRT logger that writes to ours and remembers errors for the exceptions they lead to."""

    class Logger(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            LOG.log(level, "%s", message)
            if level == logging.ERROR:
                self.errors.append(message)

        def said(self) -> str:
            """The errors since the last call."""
            text = "; ".join(self.errors)
            self.errors.clear()
            return text

    chat = logging.INFO if verbose else logging.DEBUG
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING if verbose else logging.DEBUG,
        trt.ILogger.INFO: chat,
        trt.ILogger.VERBOSE: chat,
    }
    return Logger()


def _in_a_thread(work: Callable[[], Any], stop: threading.Event) -> Any:
    """Do `work` in a thread of its own; on Ctrl-C or SIGTERM set `stop`, wait for its end and go on with the exception.

    Python runs signal handlers in the main thread alone. Were TensorRT working there, the exception would arise in one
    of its calls back to our logger, and be lost.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def _progress(trt: Any, stop: threading.Event) -> Iterator[Any]:
    """A progress monitor: bars on stderr where that is a terminal, and an end to the build once `stop` is set."""
    from rich.console import Console
    from rich.progress import Progress

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            super().__init__()
            self._tasks: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            # Phases of one name may overlap: they share a bar.
            if phase_name not in self._tasks:
                self._tasks[phase_name] = bars.add_task(phase_name, total=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._tasks:
                bars.update(self._tasks[phase_name], completed=step + 1)
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._tasks:
                bars.remove_task(self._tasks.pop(phase_name))

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        yield Monitor()
