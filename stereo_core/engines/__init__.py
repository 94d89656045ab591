"""Engines: an exported network that gives disparity without PyTorch, built and run by one of several backends.

A backend is a `base.Backend`; a module of this folder gives it by `backend(name)`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_core.engines.base import Backend, BuildSettings, Engine
from stereo_core.engines.files import read_engine, read_onnx, write_sidecar
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import atomic_path, sha256_of

LOG = logging.getLogger(__name__)

# Backend -> its module, in the order in which `auto` takes the first that is installed.
BACKENDS = {"onnxruntime": "stereo_core.engines.onnxruntime"}


@dataclass(frozen=True)
class Build:
    """What was built: the side-car, how the backend came to be chosen, and the difference to the ONNX file in px."""

    info: dict
    choice: str
    difference: dict[str, float] | None


def choose_backend(asked: str) -> tuple[str, str]:
    """(backend, the words for it in logs and reports).

    Raises:
        SpecError: the backend asked for is not available here; there is no silent fall-back.
    """
    if asked != "auto" and asked not in BACKENDS:
        raise SpecError(
            f"gen_trt_engine.backend: {asked} is not available in this installation; available: {', '.join(BACKENDS)}"
        )
    if asked != "auto":
        return asked, asked
    backend = next(iter(BACKENDS))
    return backend, f"{backend} (TensorRT is not available here)"


def build_engine(onnx: str | Path, out: str | Path, settings: BuildSettings) -> Build:
    """Build the engine `out` and its side-car `out`.json from an ONNX file of `depth_net export` or TAO.

    The ONNX file's static batch wins over the profile. With `verify`, the engine is run against the ONNX file before
    it gets its name.

    Raises:
        ModelError: `onnx` is not a stereo ONNX file.
        SpecError: the backend is not available, or does not build the precision, or the profile is not
            1 <= min <= opt <= max.
        RuntimeError: the engine's disparity is not the ONNX file's.
    """
    onnx, out = Path(onnx), Path(out)
    graph = read_onnx(onnx)
    if out.exists() and out.samefile(onnx):
        raise SpecError(f"gen_trt_engine.trt_engine: {out} is the ONNX file itself; give the engine another name")
    name, choice = choose_backend(settings.backend)
    LOG.info("engine backend: %s", choice)
    backend = _backend(name)
    _check_precision(name, backend, settings.precision)
    info = graph | _batches(graph, settings) | {"kind": "engine", "backend": name, "precision": settings.precision}
    with atomic_path(out) as temporary:
        info |= backend.build(onnx, temporary, info, settings)
        info |= {"onnx_sha256": sha256_of(onnx), "sha256": sha256_of(temporary)}
        difference = _verify(backend, temporary, info, onnx) if settings.verify else None
    write_sidecar(out, info)
    return Build(info, choice, difference)


def load_engine(path: str | Path, device: Any = None) -> Engine:
    """Load an engine for `infer`.

    Args:
        device: "cpu", "cuda", "cuda:N" or a torch.device; None takes a GPU where the backend has one.

    Raises:
        ModelError: not an engine (says what the file is), truncated or changed, or of a backend that is not here.
        UserError: the device asked for is not available.
    """
    path = Path(path)
    info = read_engine(path)
    if info["backend"] not in BACKENDS:
        raise ModelError(
            f"{path}: an engine of {info['backend']} {info['backend_version']} for {info['target']}, a backend that is "
            f"not available here (available: {', '.join(BACKENDS)}); build the engine again from its ONNX file"
        )
    return _backend(info["backend"]).load(path, info, device)


def suffix_of(backend: str) -> str:
    """The file name's end that a backend's engines get where the user gives no name: `<name>.ort.onnx`."""
    return _backend(choose_backend(backend)[0]).suffix


def _backend(name: str) -> Backend:
    return importlib.import_module(BACKENDS[name]).backend(name)


def _check_precision(name: str, backend: Backend, precision: str) -> None:
    if precision not in backend.precisions:
        raise SpecError(
            f"gen_trt_engine.tensorrt.data_type: the {name} backend does not build {precision}; "
            f"it builds {', '.join(backend.precisions)}"
        )


def _batches(graph: dict, settings: BuildSettings) -> dict:
    if graph["max_batch"] is not None:
        return {}
    profile = (settings.min_batch, settings.opt_batch, settings.max_batch)
    if not 1 <= profile[0] <= profile[1] <= profile[2]:
        raise SpecError(
            "gen_trt_engine.tensorrt: min_batch_size, opt_batch_size, max_batch_size are "
            f"{profile[0]}, {profile[1]}, {profile[2]}; they must not fall, and be at least 1"
        )
    return dict(zip(("min_batch", "opt_batch", "max_batch"), profile, strict=True))


def _verify(backend: Backend, engine: Path, info: dict, onnx: Path) -> dict[str, float]:
    from stereo_core.engines.verify import difference, reference_disparity, synthetic_pair

    batch = max(info["min_batch"], min(2, info["max_batch"]))  # two images where it can be: they must not mix
    left_B3HW, right_B3HW = synthetic_pair(info["input_height"], info["input_width"], batch)
    disparity_BHW = backend.load(engine, info, None).run(left_B3HW, right_B3HW)
    return difference(disparity_BHW, reference_disparity(onnx, left_B3HW, right_B3HW), info["precision"])
