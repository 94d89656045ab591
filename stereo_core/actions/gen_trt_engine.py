"""gen_trt_engine: an ONNX file becomes an engine of the chosen backend, checked against the ONNX file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from stereo_core.actions import Outcome
from stereo_core.engines import BuildSettings, build_engine, choose_backend, suffix_of
from stereo_core.spec import results_dir

LOG = logging.getLogger(__name__)

# Build settings that ONNX Runtime has no use for: what they say without being set, under gen_trt_engine.tensorrt.
_TENSORRT_ONLY = {"workspace_size": (4, 1024), "layers_precision": ([],)}


def run(spec: Any, status: Any) -> Outcome:
    """Build `gen_trt_engine.trt_engine` (exactly that file; empty: in the results folder) and its side-car.

    Raises:
        UserError: no usable ONNX file, an absent backend, a precision it does not build, a batch profile that falls.
        RuntimeError: the engine's disparity is not the ONNX file's (`gen_trt_engine.verify`).
    """
    section = spec.gen_trt_engine
    backend, choice = choose_backend(section.backend)
    if backend == "onnxruntime":
        _warn_without_effect(section.tensorrt)
    onnx = Path(section.onnx_file)
    engine = Path(section.trt_engine or results_dir(spec, "gen_trt_engine") / f"{onnx.stem}{suffix_of(backend)}")
    status.running(f"Building {engine} from {onnx} with {choice}")
    build = build_engine(onnx, engine, _settings(section))
    kpi = {f"verify_{key}": value for key, value in (build.difference or {}).items()}
    checked = f", {kpi['verify_mean_abs_difference_px']:.2g} px from the ONNX file" if kpi else ", not verified"
    return Outcome(
        message=f"Engine {engine} built with {choice}{checked}.",
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
        verify=section.verify,
        verbose=section.verbose,
    )


def _warn_without_effect(tensorrt: Any) -> None:
    for key, unset in _TENSORRT_ONLY.items():
        if getattr(tensorrt, key) not in unset:
            LOG.warning("gen_trt_engine.tensorrt.%s has no effect with the onnxruntime backend", key)
