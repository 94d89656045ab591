"""Disparity from a model given by name: a checkpoint, an engine, or the starter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from stereo_core.engines import load_engine
from stereo_core.engines.files import file_kind, read_engine
from stereo_core.errors import ModelError, SpecError
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.choice import NoChoice, chosen
from stereo_core.spec.loading import checked


def spec_of(model: str, iters: int | None = None, **inference: Any) -> ExperimentSpec:
    """The spec of an inference with a model and further keys of its section, without data.

    Raises:
        ModelError: the file is missing, or neither a checkpoint nor an engine.
        SpecError: iterations are given for an engine, which has a fixed number.
    """
    file = _file(model)
    kind = file_kind(file)
    engine = kind == "engine"
    if kind in ("onnx", "tensorrt"):
        read_engine(file)  # raises: says what is missing
    if engine and iters:
        raise SpecError(
            f"--iters: the engine {file} has a fixed number of iterations; leave --iters out, or name a checkpoint"
        )
    section = {"trt_engine" if engine else "checkpoint": str(file)} | inference
    tree: dict[str, Any] = {"inference": section}
    if iters:
        tree["model"] = {"valid_iters": iters}
    return cast(ExperimentSpec, checked("inference", tree, "command line"))


def _file(model: str) -> Path:
    if not model:
        raise ModelError("--model: no file is named; give a checkpoint, an engine or starter")
    try:
        return chosen(model)
    except NoChoice as error:
        raise ModelError(str(error)) from None


def predict(left: Any, right: Any, model: str | Path = "starter") -> Any:
    """Estimate the disparity of rectified pairs, on a GPU if there is one.

    The model of the last call stays loaded. An engine does not need PyTorch.

    Args:
        left, right: 0..255, uint8 or float; NumPy (H, W, 3) or (B, H, W, 3) RGB, (H, W) or (B, H, W, 1) grey; or torch
            (B, 3, H, W), grey (B, 1, H, W).
        model: "starter", a checkpoint (also FOLDER@best) or an engine.

    Returns:
        float32 disparity in px of the input images: NumPy (H, W) or (B, H, W); torch (B, H, W) on left's device.

    Raises:
        ValueError: a shape or type is unsupported, the values are in 0..1, or left and right differ.
        ModelError: the model cannot be used.
    """
    file = _file(str(model))
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    return _infer(str(file), changed)(left, right)


@functools.lru_cache(maxsize=1)
def _infer(file: str, changed: int) -> Callable[[Any, Any], Any]:
    spec = spec_of(file)
    if spec.inference.trt_engine:
        return load_engine(file).infer
    from stereo_core.actions.predict.predictor import load_predictor
    from stereo_core.models.infer import infer

    predictor = load_predictor(spec, "predict", 0)
    return functools.partial(infer, predictor.predict, predictor.device)
