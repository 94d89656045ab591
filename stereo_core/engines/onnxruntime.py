"""ONNX Runtime: the engine is the graph as ONNX Runtime optimises it for any device, still a plain ONNX file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from stereo_core.engines.base import BuildSettings, Engine
from stereo_core.engines.files import DISPARITY, LEFT, RIGHT, without_channel
from stereo_core.errors import UserError

LOG = logging.getLogger(__name__)


def backend(name: str) -> OnnxRuntime:
    """The one backend of this file."""
    return OnnxRuntime()


class OnnxRuntime:
    """See `stereo_core.engines.base.Backend`."""

    precisions = ("fp32",)
    suffix = ".ort.onnx"

    def why_not_here(self, settings: BuildSettings) -> None:
        return None

    def build(self, onnx: Path, out: Path, info: dict, settings: BuildSettings) -> dict:
        return write_optimised(onnx, out, settings.verbose)

    def why_not_runnable(self, info: dict, device: Any = None) -> None:
        return None

    def load(self, path: Path, info: dict, device: Any) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(path, info, device)


def write_optimised(onnx: Path, out: Path, verbose: bool = False) -> dict:
    """Write the optimised graph of `onnx` to `out`.

    Basic optimisations only: they keep to standard operators, so the engine runs on every provider; the fusions of
    one device are made when the engine is loaded.

    Returns:
        the side-car keys that the backend knows: backend_version and target.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 0 if verbose else 3
    ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    return {"backend_version": ort.__version__, "target": "any"}


class OnnxRuntimeEngine(Engine):
    """Attributes: provider: the ONNX Runtime execution provider that runs it."""

    def __init__(self, path: Path, info: dict, device: Any = None):
        super().__init__(info)
        self._session = open_session(path, device)
        self.provider = self._session.get_providers()[0]
        LOG.info("%s runs on ONNX Runtime %s, %s", path, ort.__version__, self.provider)

    def run(self, left_B3HW: np.ndarray, right_B3HW: np.ndarray) -> np.ndarray:
        return without_channel(self._session.run([DISPARITY], {LEFT: left_B3HW, RIGHT: right_B3HW})[0])


def open_session(path: Path, device: Any = None, optimise: bool = True) -> ort.InferenceSession:
    """Open an ONNX file on one device.

    Args:
        device: "cpu", "cuda", "cuda:N" or a torch.device; None takes a GPU where there is one.
        optimise: False runs the graph node by node as it stands in the file, the reference for checks.

    Raises:
        UserError: a GPU was asked for and ONNX Runtime has none to offer.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    asked = None if device is None else str(device)
    session = ort.InferenceSession(str(path), options, providers=_providers(asked))
    if asked and asked != "cpu" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError(f"device {asked}: ONNX Runtime {ort.__version__} could not start its CUDA provider here")
    session.disable_fallback()
    return session


def _providers(device: str | None) -> list:
    name, _, index = (device or "").partition(":")
    if name not in ("", "cpu", "cuda") or not (index or "0").isdigit():
        raise UserError(f"device {device!r} is not cpu, cuda or cuda:N")
    offered = ort.get_available_providers()
    if name != "cpu" and "CUDAExecutionProvider" in offered:
        return [("CUDAExecutionProvider", {"device_id": index or "0"}), "CPUExecutionProvider"]
    if name == "cuda":
        raise UserError(
            f"device {device}: this ONNX Runtime ({ort.__version__}) has no CUDA provider, only {', '.join(offered)}; "
            "install onnxruntime-gpu, or run on the CPU"
        )
    return ["CPUExecutionProvider"]
