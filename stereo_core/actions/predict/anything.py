"""Disparity from a model that is only named: a checkpoint, an engine, or the starter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stereo_core.engines import load_engine
from stereo_core.engines.files import file_kind
from stereo_core.errors import ModelError, SpecError
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.choice import NoChoice, chosen
from stereo_core.spec.loading import checked


def spec_of(model: str, iters: int | None = None, **inference: Any) -> ExperimentSpec:
    """The spec of an inference with a model and what else its section is to say; data it names none.

    Raises:
        ModelError: no such file, or neither a checkpoint nor an engine.
        SpecError: an engine is to run other iterations than it holds.
    """
    file = _file(model)
    engine = file_kind(file) == "engine"
    if engine and iters:
        raise SpecError(f"--iters: an engine has its iterations built in; leave it out, or name a checkpoint: {file}")
    said = {"trt_engine" if engine else "checkpoint": str(file)} | inference
    tree: dict[str, Any] = {"inference": said}
    if iters:
        tree["model"] = {"valid_iters": iters}
    return checked("inference", tree, "command line")


def _file(model: str) -> Path:
    try:
        return chosen(model)
    except NoChoice as error:
        raise ModelError(str(error)) from None


def predict(left: Any, right: Any, model: str | Path = "starter") -> Any:
    """Estimate the disparity of rectified pairs, on a GPU where there is one.

    The model of the last call stays loaded. With an engine PyTorch is not needed.

    Args:
        left, right: 0..255, uint8 or float; NumPy (H, W, 3) or (B, H, W, 3) RGB, (H, W) or (B, H, W, 1) grey; or torch
            (B, 3, H, W), grey (B, 1, H, W).
        model: "starter", a checkpoint (also FOLDER@best) or an engine.

    Returns:
        float32 disparity in px of the images given: NumPy (H, W) or (B, H, W); torch (B, H, W) on left's device.

    Raises:
        ValueError: shapes or types are others, or left and right differ.
        ModelError: the model can not be used.
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

    predictor = load_predictor(spec, "inference", 0)
    return functools.partial(infer, predictor.predict, predictor.device)
