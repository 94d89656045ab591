"""ONNX Runtime: the engine is an ONNX file that runs on any device."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from stereo_core.cores import threads
from stereo_core.engines.base import BuildSettings, Engine
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
from stereo_core.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto

LOG = logging.getLogger(__name__)


def backend(name: str) -> OnnxRuntime:
    """The only backend of this file."""
    return OnnxRuntime()


class OnnxRuntime:
    """See `stereo_core.engines.base.Backend`."""

    precisions = ("fp32", "fp16", "int8", "fp8")
    suffix = ".ort.onnx"
    reach = 2

    def why_not_here(self, settings: BuildSettings) -> None:
        return None

    def build(self, onnx: Path, out: Path, info: dict[str, Any], settings: BuildSettings) -> dict[str, Any]:
        import onnx as onnx_library

        from stereo_core.engines.deconvolution import split_deconvolutions

        model = onnx_library.load(onnx)
        if info["precision"] == "fp16":
            model = _in_fp16(model, settings.layers_precision)
            # Not optimised here: that needs a CPU session, which would insert casts to float32 everywhere because ONNX
            # Runtime has few fp16 kernels for CPUs. The basic optimisations run when the engine is loaded.
            onnx_library.save(model, out)
        else:
            split_deconvolutions(model)
            _write_optimised(model.SerializeToString(), out, settings.verbose)
        return {"backend_version": ort.__version__, "target": "any"}

    def why_not_runnable(self, info: dict[str, Any], device: Any = None) -> None:
        return None

    def load(self, path: Path, info: dict[str, Any], device: Any) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(path, info, device)


def _in_fp16(model: ModelProto, pins: Sequence[str]) -> ModelProto:
    """Convert to fp16 except deconvolutions, unless the user sets them to fp16: in fp16 those of volumes took 327 of
    437 ms on an H100; with them in float32 the whole network takes 117."""
    from stereo_core.engines.precision import lower_precision

    deconvolutions = [f"{node.name}:fp32" for node in model.graph.node if node.op_type == "ConvTranspose"]
    return lower_precision(model, "fp16", [*deconvolutions, *pins])


def _write_optimised(model: bytes, out: Path, verbose: bool) -> None:
    """Apply only basic optimisations: they use standard operators, so the engine runs on every provider; fusions for
    one device run when the engine is loaded. Without the fusion of MatMul and Add to Gemm: at loading, it would create
    tensor names that already exist, and ONNX Runtime would reject its own file."""
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 0 if verbose else 3
    try:
        ort.InferenceSession(model, options, ["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"])
    except Exception:  # ONNX Runtime has no class for its errors
        out.write_bytes(model)  # raises the system's reason if the disk cannot hold it; ONNX Runtime's names no file
        raise


class OnnxRuntimeEngine(Engine):
    """Inputs and output are in memory of the provider's device, allocated once per shape.

    Args:
        graph: on a GPU, replay an engine of one shape as a CUDA graph, if the provider supports all its nodes.
    """

    def __init__(self, path: Path, info: dict[str, Any], device: Any = None, graph: bool = False):
        super().__init__(info)
        self._path, self._asked = path, device
        self._graph = graph and self._one_size and info["min_batch"] == info["max_batch"]
        # The exhaustive search makes float32 engines faster (327 vs 374 ms on an H100) and fp16 engines slower (507 vs
        # 452 ms, with fp16 deconvolutions); for images of many sizes it takes too long.
        exhaustive = info["min_height"] == info["max_height"] and info["precision"] != "fp16"
        self._search = "EXHAUSTIVE" if exhaustive else "HEURISTIC"
        self._session = open_session(path, device, search=self._search, graph=self._graph)
        self.provider = self._session.get_providers()[0]
        self._on_gpu = self.provider == "CUDAExecutionProvider"
        self._gpu_id = int(self._session.get_provider_options()[self.provider]["device_id"]) if self._on_gpu else 0
        self.device = f"cuda:{self._gpu_id}" if self._on_gpu else "cpu"
        # Some tools write the disparity as B x H x W.
        self._has_channel = len(self._session.get_outputs()[0].shape) == 4
        self._values: dict[tuple[int, ...], dict[str, ort.OrtValue]] = {}
        self._tensors: dict[str, Any] = {}  # fixed memory of the CUDA graph
        self.runtime = f"ONNX Runtime {ort.__version__}, {self.provider}"

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        values = self._allocated(left_B3HW.shape)
        values[LEFT].update_inplace(left_B3HW)
        values[RIGHT].update_inplace(right_B3HW)

        def bind(binding: ort.IOBinding) -> None:
            for name in (LEFT, RIGHT):
                binding.bind_ortvalue_input(name, values[name])
            binding.bind_ortvalue_output(DISPARITY, values[DISPARITY])

        self._run_bound(bind, "1")
        # Copy: numpy() may be a view of memory that the next run overwrites.
        return without_channel(values[DISPARITY].numpy().copy())

    def run_torch(self, left_B3HW: Any, right_B3HW: Any) -> Any:
        """Bind the tensors' own memory, on GPU and CPU; a CUDA graph uses its fixed memory instead."""
        import torch

        shapes = self._shapes(left_B3HW.shape)
        tensors = self._tensors
        if not tensors:
            disparity = torch.empty(shapes[DISPARITY], device=left_B3HW.device)
            tensors = {LEFT: left_B3HW.contiguous(), RIGHT: right_B3HW.contiguous(), DISPARITY: disparity}
        if self._graph:
            self._tensors = self._tensors or {name: tensor.clone() for name, tensor in tensors.items()}
            tensors = self._tensors
            tensors[LEFT].copy_(left_B3HW)
            tensors[RIGHT].copy_(right_B3HW)
        place = ("cuda", self._gpu_id) if self._on_gpu else ("cpu", 0)

        def bind(binding: ort.IOBinding) -> None:
            for name, tensor in tensors.items():
                take = binding.bind_output if name == DISPARITY else binding.bind_input
                take(name, *place, np.float32, shapes[name], tensor.data_ptr())

        if self._on_gpu:
            torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime uses its own stream
        self._run_bound(bind, "2")  # waits for the end of the run
        disparity = tensors[DISPARITY].clone() if self._graph else tensors[DISPARITY]
        return disparity[:, 0] if self._has_channel else disparity

    def _run_bound(self, bind: Callable[[ort.IOBinding], None], memory: str) -> None:
        """Run once. If a convolution that cuDNN chose does not fit into the GPU's memory (one requested 129 GiB),
        reopen the session with slower convolutions that need little memory, for this and all later runs.

        `memory` identifies the bound memory: there is one CUDA graph for each.
        """
        try:
            self._run_once(bind, memory)
        except RuntimeError as error:
            if not self._on_gpu or self._search == "DEFAULT" or "Failed to allocate memory" not in str(error):
                raise
            LOG.warning("%s: cuDNN chose a convolution that does not fit into the GPU's memory at this size; from now "
                        "on, slower convolutions that need less memory are used", self._path)  # fmt: skip
            self._session, self._search = None, "DEFAULT"  # release its memory first
            self._session = open_session(self._path, self._asked, search=self._search, graph=self._graph)
            self._run_once(bind, memory)

    def _run_once(self, bind: Callable[[ort.IOBinding], None], memory: str) -> None:
        binding = self._session.io_binding()
        bind(binding)
        options = ort.RunOptions()
        if self._graph:
            options.add_run_config_entry("gpu_graph_id", memory)
        self._session.run_with_iobinding(binding, options)

    def _shapes(self, images: Sequence[int]) -> dict[str, tuple[int, ...]]:
        batch, _, height, width = images
        disparity = (batch, 1, height, width) if self._has_channel else (batch, height, width)
        return {LEFT: tuple(images), RIGHT: tuple(images), DISPARITY: disparity}

    def _allocated(self, images: Sequence[int]) -> dict[str, ort.OrtValue]:
        key = tuple(images)
        if key not in self._values:
            place = ("cuda", self._gpu_id) if self._on_gpu else ("cpu", 0)
            make = ort.OrtValue.ortvalue_from_shape_and_type
            self._values[key] = {name: make(shape, np.float32, *place) for name, shape in self._shapes(images).items()}
        return self._values[key]


# This optimiser removes a Relu before a quantiser whose zero point is the smallest value of its type, because clipping
# does the same. It wrongly does so for float8, whose zero point is 0: 0.5 px of error.
_WRONG = ["ReluQuantRewrite"]


def open_session(
    path: Path, device: Any = None, optimise: bool = True, search: str = "EXHAUSTIVE", graph: bool = False
) -> ort.InferenceSession:
    """Open an ONNX file on one device.

    Args:
        device: "cpu", "cuda", "cuda:N" or a torch.device; None: a GPU if there is one.
        optimise: False runs the graph node by node without changes, as the reference for checks.
        search: how cuDNN chooses convolutions in the CUDA provider: EXHAUSTIVE, HEURISTIC or DEFAULT.
        graph: the CUDA provider records a CUDA graph for each set of bound memory and replays it.

    Raises:
        UserError: a GPU was requested, but ONNX Runtime cannot use one.
    """
    options = session_options()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    requested = None if device is None else str(device)
    providers = _providers(requested, search, graph)
    if providers == ["CPUExecutionProvider"]:
        # Memory patterns need 2.1 GiB instead of 1.7 for vits at 320 x 736, more than PyTorch.
        options.enable_mem_pattern = False
    session = ort.InferenceSession(str(path), options, providers=providers, disabled_optimizers=_WRONG)
    if requested and requested != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError(
            f"device {requested}: ONNX Runtime {ort.__version__} could not start its CUDA provider; check CUDA and "
            "cuDNN, or use cpu"
        )
    provider = session.get_providers()[0]
    if requested is None and provider != "CUDAExecutionProvider" and len(providers) > 1:
        LOG.warning(
            "ONNX Runtime %s could not start its CUDA provider, so %s runs on the CPU; check CUDA and cuDNN",
            ort.__version__,
            path,
        )
    session.disable_fallback()
    return session


def session_options() -> ort.SessionOptions:
    """Apply OMP_NUM_THREADS and OMP_WAIT_POLICY to ONNX Runtime, so that one setting works for all libraries: ONNX
    Runtime ignores OMP_* variables and uses all cores of the machine, not only those of this process."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(device: str | None, search: str, graph: bool) -> list[Any]:
    name, _, index = (device or "").partition(":")
    if name not in ("", "cpu", "cuda") or not (index or "0").isdigit():
        raise UserError(f"device {device!r} is not cpu, cuda or cuda:N")
    offered = ort.get_available_providers()
    if name != "cpu" and "CUDAExecutionProvider" in offered:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # loads CUDA and cuDNN from PyTorch's and NVIDIA's wheels
        # It logs a line for each convolution whose first algorithm does not fit; real failures are raised.
        ort.set_default_logger_severity(4)
        cuda = {
            "device_id": index or "0",
            "arena_extend_strategy": "kSameAsRequested",  # instead of the next power of two
            "cudnn_conv_algo_search": search,
            "use_tf32": "0",  # compute float32 exactly
            "enable_cuda_graph": str(int(graph)),
        }
        return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    if name == "cuda":
        raise UserError(
            f"device {device}: this ONNX Runtime ({ort.__version__}) has no CUDA provider, only {', '.join(offered)}; "
            "install onnxruntime-gpu, or use the device cpu"
        )
    if name != "cpu" and _torch_has_gpu():
        LOG.warning(
            "ONNX Runtime %s has no CUDA provider and runs on the CPU, although this machine has a GPU; install "
            "onnxruntime-gpu, or set the device to cpu",
            ort.__version__,
        )
    return ["CPUExecutionProvider"]


def _torch_has_gpu() -> bool:
    """Whether PyTorch sees a GPU; False if PyTorch is not imported, and it is not imported for this."""
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_available()
