"""gen_trt_engine: build an engine from an ONNX file with the chosen backend, and compare it with the ONNX file."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stereo_core.engines import build_engine, choose_backend, suffix_of
from stereo_core.engines.base import BuildSettings
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir

LOG = logging.getLogger(__name__)

NO_LIMIT = 1024  # workspace_size: TAO's default, meant as MB
# Settings that a backend or a precision ignores, with their default values.
_UNSET = {
    "tensorrt.workspace_size": (4, NO_LIMIT),
    "tensorrt.layers_precision": ([],),
    "timing_cache": ("",),
    "compute_capabilities": ([],),
}
_WITHOUT_EFFECT = {
    "openvino": ("tensorrt.workspace_size", "tensorrt.layers_precision", "timing_cache", "compute_capabilities"),
    "onnxruntime": ("tensorrt.workspace_size", "timing_cache", "compute_capabilities"),
    "tensorrt_rtx": ("timing_cache",),  # its build does not time layers
    "tensorrt": (),
}


def run(spec: Any, status: Any) -> Outcome:
    """Build `gen_trt_engine.trt_engine` (exactly that file; empty: in the results folder) and its side-car.

    Raises:
        UserError: an unusable ONNX file, a missing backend, an unsupported precision or an invalid profile.
        RuntimeError: the build failed, or the engine's disparity differs from the ONNX file's (`verify`).
    """
    section = spec.gen_trt_engine
    settings = _settings(section)
    backend = choose_backend(settings)
    settings = replace(settings, backend=backend)
    _warn(section, backend)
    onnx = Path(section.onnx_file)
    engine = Path(section.trt_engine or results_dir(spec, "gen_trt_engine") / f"{onnx.stem}{suffix_of(backend)}")
    status.running(f"Building {engine} from {onnx} with {backend}")
    start = time.perf_counter()
    build = build_engine(onnx, engine, settings)
    kpi = {"engine_bytes": engine.stat().st_size, "build_seconds": time.perf_counter() - start}
    kpi |= {f"verify_{key}": value for key, value in (build.difference or {}).items()}
    if build.difference:
        checked = f"{kpi['verify_mean_abs_difference_px']:.2g} px from the ONNX file"
    else:
        checked = f"not verified: {build.not_verified}"
    return Outcome(
        message=f"Built engine {engine} with {backend}, {settings.precision}, {checked}.",
        kpi=kpi,
        artifacts={"engine": engine},
        metadata={"engine": {key: value for key, value in build.info.items() if key not in ("kind", "sha256")}},
    )


def _settings(section: Any) -> BuildSettings:
    tensorrt = section.tensorrt
    return BuildSettings(
        backend=section.backend,
        precision=tensorrt.data_type,
        min_batch=tensorrt.min_batch_size,
        opt_batch=tensorrt.opt_batch_size,
        max_batch=tensorrt.max_batch_size,
        heights=(section.min_height, section.opt_height, section.max_height),
        widths=(section.min_width, section.opt_width, section.max_width),
        workspace_gib=None if tensorrt.workspace_size == NO_LIMIT else tensorrt.workspace_size,
        layers_precision=tuple(tensorrt.layers_precision),
        timing_cache=Path(section.timing_cache) if section.timing_cache else None,
        compute_capabilities=tuple(section.compute_capabilities),
        gpu_id=section.gpu_id,
        verify=section.verify,
        verbose=section.verbose,
    )


def _warn(section: Any, backend: str) -> None:
    """Warn about keys without effect: those that the backend ignores, and pins if the graph's own types apply."""
    vain = _WITHOUT_EFFECT[backend]
    for key in vain:
        if _value(section, key) not in _UNSET[key]:
            LOG.warning("gen_trt_engine.%s has no effect with the %s backend; leave it out", key, backend)
    precision = section.tensorrt.data_type
    if section.tensorrt.layers_precision and precision not in ("fp16", "bf16"):
        LOG.warning(
            "gen_trt_engine.tensorrt.layers_precision has no effect in %s, only in fp16 and bf16; leave it out",
            precision,
        )
    if "tensorrt.workspace_size" not in vain and section.tensorrt.workspace_size == NO_LIMIT:
        LOG.warning("gen_trt_engine.tensorrt.workspace_size: %d means no limit here, because the unit is GiB", NO_LIMIT)


def _value(section: Any, key: str) -> Any:
    for name in key.split("."):
        section = getattr(section, name)
    return section
