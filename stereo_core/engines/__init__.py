"""Engines: an exported network that computes disparity without its Python code; several backends build and run them.

A backend is a `base.Backend`; each backend module of this folder has a function `backend(name)`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_core.engines.base import SMALLEST, Backend, BuildSettings, Engine
from stereo_core.engines.files import profile_text, read_engine, read_onnx, write_sidecar
from stereo_core.errors import ModelError, SpecError
from stereo_core.files import atomic_path, locked, sha256_of

LOG = logging.getLogger(__name__)

# Backend -> its module; `auto` chooses the first that can build here.
BACKENDS = {
    "tensorrt": "stereo_core.engines.tensorrt",
    "tensorrt_rtx": "stereo_core.engines.tensorrt",
    "openvino": "stereo_core.engines.openvino",
    "onnxruntime": "stereo_core.engines.onnxruntime",
}


@dataclass(frozen=True)
class Build:
    """The result of a build.

    Attributes:
        info: the side-car.
        difference: difference from the ONNX file in px (`verify.difference`); None if the engine was not verified.
        not_verified: the reason if it was not verified, else None.
    """

    info: dict[str, Any]
    difference: dict[str, float] | None
    not_verified: str | None


def choose_backend(settings: BuildSettings) -> str:
    """The backend for these settings; the reasons of `auto` are logged.

    Raises:
        SpecError: the requested backend cannot build here; there is no silent fall-back.
    """
    requested = settings.backend
    if requested == "auto":
        return _first_possible(settings)
    if requested not in BACKENDS:
        raise SpecError(f"gen_trt_engine.backend: {requested} is not one of {', '.join(BACKENDS)}")
    why = _backend(requested).why_not_here(settings)
    if why:
        raise SpecError(f"gen_trt_engine.backend: {requested} cannot build here: {why}")
    return requested


def _first_possible(settings: BuildSettings) -> str:
    reasons = []
    for name in BACKENDS:
        why = _backend(name).why_not_here(settings) or _why_not_precision(name, settings.precision)
        if why is None:
            break
        reasons.append(f"not {name}: {why}")
    else:
        raise SpecError(f"gen_trt_engine.backend: no engine can be built here: {'; '.join(reasons)}")
    because = f" ({'; '.join(reasons)})" if reasons else ""
    if _backend(name).suffix.endswith(".onnx"):
        LOG.warning(
            "gen_trt_engine.backend: auto chooses %s: its engine is an ONNX file, not a TensorRT engine%s",
            name,
            because,
        )
    else:
        LOG.info("gen_trt_engine.backend: auto chooses %s%s", name, because)
    return name


def build_engine(onnx: str | Path, out: str | Path, settings: BuildSettings) -> Build:
    """Build the engine `out` and its side-car `out`.json from an ONNX file written by `depth_net export` or TAO.

    An engine that can run here is opened, and with `verify` compared with the ONNX file, before it gets its final name.
    A second build of the same file waits for the first. Whenever a build stops, `out` is missing or matches its
    side-car.

    Raises:
        ModelError: `onnx` is not a stereo ONNX file, or the backend does not support its operators.
        SpecError: the backend is not available or cannot build this precision; or a profile is not
            1 <= min <= opt <= max, has a height or width that is no multiple of 32, or contradicts a static size.
        RuntimeError: the build failed, the engine cannot be opened, or its disparity differs from the ONNX file's.
    """
    onnx, out = Path(onnx), Path(out)
    graph = read_onnx(onnx)
    if out.exists() and out.samefile(onnx):
        raise SpecError(
            f"gen_trt_engine.trt_engine: {out} is also the name of the ONNX file; choose another name for the engine"
        )
    name = choose_backend(settings)
    backend = _backend(name)
    _check_precision(name, settings.precision, graph["precision"])
    info = (
        graph
        | _profile(graph, settings, backend.reach)
        | {"kind": "engine", "backend": name, "precision": settings.precision}
    )
    LOG.info("the engine accepts %s%s", profile_text(info), _other_ranges(graph))
    with locked(out), atomic_path(out) as temporary:
        info |= backend.build(onnx, temporary, info, settings)
        info |= {"onnx_sha256": sha256_of(onnx), "sha256": sha256_of(temporary)}
        difference, not_verified = _verified(backend, temporary, info, onnx, settings)
        # An earlier engine must not stay beside the new side-car.
        out.unlink(missing_ok=True)
        write_sidecar(out, info)
    return Build(info, difference, not_verified)


def load_engine(path: str | Path, device: Any = None) -> Engine:
    """Load an engine for `infer`.

    Args:
        device: "cpu", "cuda", "cuda:N" or a torch.device; None: a GPU if the backend has one.

    Raises:
        ModelError: not an engine (the message names the kind of file), truncated or changed, or of a backend that is
            not available.
        UserError: the requested device is not available.
    """
    path = Path(path)
    info = read_engine(path)
    if info["backend"] not in BACKENDS:
        raise ModelError(
            f"{path}: the engine needs the backend {info['backend']} {info['backend_version']} for {info['target']}, "
            "which "
            f"is not available here (available: {', '.join(BACKENDS)}); build the engine again from its ONNX file"
        )
    engine = _backend(info["backend"]).load(path, info, device)
    LOG.info("%s runs on %s", path, engine.runtime)
    return engine


def suffix_of(backend: str) -> str:
    """The default file suffix of a backend's engines, as in `<name>.ort.onnx`."""
    return _backend(backend).suffix


def _backend(name: str) -> Backend:
    backend: Backend = importlib.import_module(BACKENDS[name]).backend(name)
    return backend


_QUANTISED = ("int8", "fp8")


def _why_not_precision(name: str, precision: str) -> str | None:
    built = _backend(name).precisions
    if precision in built:
        return None
    return f"the {name} backend does not build {precision}; it builds {', '.join(built)}"


def _check_precision(name: str, precision: str, file_precision: str) -> None:
    key = "gen_trt_engine.tensorrt.data_type"
    if why := _why_not_precision(name, precision):
        raise SpecError(f"{key}: {why}")
    if precision in _QUANTISED and file_precision != precision:
        raise SpecError(
            f"{key}: {precision} needs an ONNX file quantised to {precision} (QuantizeLinear), but this one is "
            f"{file_precision}; create one by `depth_net quantize` with the backend modelopt.onnx"
        )
    if file_precision in _QUANTISED and precision != file_precision:
        raise SpecError(f"{key}: the ONNX file is quantised to {file_precision}; set {file_precision}, not {precision}")


def _other_ranges(graph: dict[str, Any]) -> str:
    """The keys that set other ranges, for sizes that the ONNX file leaves dynamic."""
    keys = ["tensorrt.{min,opt,max}_batch_size"] if graph["max_batch"] is None else []
    keys += [f"{{min,opt,max}}_{side}" for side in ("height", "width") if graph[f"max_{side}"] is None]
    fixed = [side for side in ("height", "width") if graph[f"max_{side}"] is not None]
    words = f"; to change this, set gen_trt_engine.{', gen_trt_engine.'.join(keys)}" if keys else ""
    return words + (f" ({' and '.join(fixed)} are fixed in the ONNX file: export.dynamic_hw)" if keys and fixed else "")


def _profile(graph: dict[str, Any], settings: BuildSettings, reach: int) -> dict[str, Any]:
    """The minimum, optimum and maximum of batch, height and width; static sizes come from the ONNX file."""
    found: dict[str, Any] = {}
    for side, wanted in (("height", settings.heights), ("width", settings.widths)):
        smallest, best, largest = _size_range(graph, side, wanted, reach)
        found |= {f"min_{side}": smallest, f"input_{side}": best, f"max_{side}": largest}
    keys = "gen_trt_engine.tensorrt: min_batch_size, opt_batch_size, max_batch_size"
    static, batches = graph["max_batch"], (settings.min_batch, settings.opt_batch, settings.max_batch)
    if static is not None:
        if set(batches) - {1, static}:  # 1: TAO's default, which its templates contain
            raise SpecError(
                f"{keys} are {_listed(batches)}, but the ONNX file has a static batch of {static}; leave them out, or "
                "export a file with dynamic batch (export.batch_size=-1)"
            )
        return found
    _check_range(keys, batches)
    return found | dict(zip(("min_batch", "opt_batch", "max_batch"), batches, strict=True))


def _size_range(graph: dict[str, Any], side: str, wanted: tuple[int | None, ...], reach: int) -> tuple[int, int, int]:
    static, traced = graph[f"max_{side}"], graph[f"input_{side}"]
    if static is not None:
        bounds = zip(("min", "opt", "max"), wanted, strict=True)
        given = {f"{bound}_{side}": size for bound, size in bounds if size is not None}
        if given and not min(given.values()) <= static <= max(given.values()):
            raise SpecError(
                f"gen_trt_engine: {', '.join(f'{key}={size}' for key, size in given.items())} cannot hold {static} px, "
                f"the only {side} of the ONNX file; leave {'it' if len(given) == 1 else 'them'} out, or export a file "
                "with dynamic size (export.dynamic_hw=true)"
            )
        return static, static, static
    best = wanted[1] or traced
    if best is None:
        raise SpecError(f"gen_trt_engine.opt_{side} is required because the ONNX file's {side} is dynamic")
    is_set = any(size is not None for size in wanted)
    sizes = (wanted[0] or best, best, wanted[2] or best) if is_set else (SMALLEST, best, reach * best)
    keys = f"gen_trt_engine: min_{side}, opt_{side}, max_{side}"
    _check_range(keys, sizes)
    if any(size % 32 for size in sizes):
        raise SpecError(f"{keys} are {_listed(sizes)}; they must be multiples of 32")
    return sizes


def _check_range(keys: str, values: tuple[int, int, int]) -> None:
    if not 1 <= values[0] <= values[1] <= values[2]:
        raise SpecError(f"{keys} are {_listed(values)}; they must be at least 1 and in ascending order")


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


_DIFFERS = "the engine's disparity differs from the ONNX file's"
_PRECISE = "no engine was written. Build fp32, or pin layers with gen_trt_engine.tensorrt.layers_precision"


def _verified(
    backend: Backend, engine: Path, info: dict[str, Any], onnx: Path, settings: BuildSettings
) -> tuple[dict[str, float] | None, str | None]:
    """Open the engine and, with `verify`, compare it.

    Returns:
        (the difference from the ONNX file in px, None), or (None, why the engine was not verified).
    """
    from stereo_core.engines.verify import difference, reference_disparity, synthetic_pair

    device = f"cuda:{settings.gpu_id}" if settings.gpu_id else None
    why = backend.why_not_runnable(info, device)
    if why and settings.verify:
        LOG.warning("the engine was not verified: %s", why)
        return None, why
    opened = None if why else backend.load(engine, info, device)
    if opened is None or not settings.verify:
        return None, "gen_trt_engine.verify is false"
    LOG.info("comparing the engine's disparity on %s with that of %s", opened.runtime, onnx)
    batch = max(info["min_batch"], min(2, info["max_batch"]))  # two images if possible, to detect that they mix
    left_B3HW, right_B3HW = synthetic_pair(info["input_height"], info["input_width"], batch)
    disparity_BHW = opened.run(left_B3HW, right_B3HW)
    expected_BHW = reference_disparity(onnx, left_B3HW, right_B3HW)
    return difference(disparity_BHW, expected_BHW, info["precision"], _DIFFERS, _PRECISE), None
