"""Sizes that can not meet, as far as they are known before the first step: a file's against an engine's, an engine's
against the images'. The steps refuse the same, but only after a training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stereo_core.errors import UserError
from stereo_core.orchestration.dag import Output, Task
from stereo_core.spec.convert import ConvertSpec
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section

SIDES = ("height", "width")


class Step(NamedTuple):
    """A step of ours whose spec is right and whole; without `verb` and `spec` one that imports from `place`."""

    task: Task
    verb: str = ""
    spec: Section | None = None
    place: str = ""


def complaints(known: dict[str, Step]) -> Iterator[tuple[str, str]]:
    """Name of a step, and what does not fit there; `known` holds what is known of the steps, by their names."""
    for name, step in known.items():
        if step.verb == "gen_trt_engine":
            yield from ((name, complaint) for complaint in _profile(step, known))
        if step.verb == "trt_evaluate" and _spec_of(step).evaluate.resize == "none":
            yield from ((name, complaint) for complaint in _frame(step, known))


def _spec_of(step: Step) -> ExperimentSpec:
    """The spec of a step whose verb reads the common file."""
    if not isinstance(step.spec, ExperimentSpec):
        raise TypeError(f"{step.verb} reads no ExperimentSpec")
    return step.spec


def _before(step: Step, port: str, known: dict[str, Step]) -> Step | None:
    """The step that an input comes from."""
    source = step.task.artifacts.get(port)
    return known.get(source.task) if isinstance(source, Output) else None


def _exported(step: Step, known: dict[str, Step]) -> dict[str, int]:
    """Height and width of the ONNX file that a step takes; empty where they are open, or not known.

    An export of what is imported may be one of an ONNX file, which keeps the size that it has.
    """
    export = _before(step, "onnx", known)
    if export is None or export.verb != "export" or _spec_of(export).export.dynamic_hw:
        return {}
    trained = _before(export, "checkpoint", known)
    own = _spec_of(export).export
    return {side: getattr(own, f"input_{side}") for side in SIDES} if trained and trained.verb else {}


def _profile(step: Step, known: dict[str, Step]) -> Iterator[str]:
    own = _spec_of(step).gen_trt_engine
    for side, static in _exported(step, known).items():
        given = [size for end in ("min", "opt", "max") if (size := getattr(own, f"{end}_{side}")) is not None]
        if given and not min(given) <= static <= max(given):
            yield (
                f"gen_trt_engine.min_{side}, opt_{side}, max_{side} do not hold export.input_{side} {static}; leave "
                "them out, or export a file of any size (export.dynamic_hw=true)"
            )


def _frame(step: Step, known: dict[str, Step]) -> Iterator[str]:
    engine, images, lists = (_before(step, port, known) for port in ("engine", "images", "annotations"))
    if (
        engine is None
        or images is None
        or lists is None
        or not isinstance(lists.spec, ConvertSpec)
        or not Path(images.place).is_dir()
    ):
        return
    frame = _exported(engine, known) if engine.verb else _engine_file(engine.place)
    found = _first_image(images.place, lists.spec) if frame else None
    if found and found[1:] != (frame["height"], frame["width"]):
        image, height, width = found
        yield (
            f"evaluate.resize: none: the engine is for {frame['width']} x {frame['height']} px (width x height), and "
            f"{image} has {width} x {height}; set pad or stretch, or build an engine of this size"
        )


def _engine_file(place: str) -> dict[str, int]:
    """Height and width of an engine of one size that lies on this machine."""
    from stereo_core.engines.files import read_sidecar

    said = read_sidecar(place) or {}
    frame = {side: size for side in SIDES if (size := said.get(f"input_{side}")) is not None}
    open_size = any(said.get(f"min_{side}") != said.get(f"max_{side}") for side in SIDES)
    return {} if open_size or len(frame) < len(SIDES) else frame


def _first_image(folder: str, convert: ConvertSpec) -> tuple[str, int, int] | None:
    """The first left image that convert finds, with height and width; none where it is for convert to complain."""
    from stereo_core.data.images import read_image
    from stereo_core.data.trees import Tree, dotted

    suffix = dotted(convert.image_extension).lower() if len(convert.image_extension) > 1 else ""
    try:
        lefts = Tree(folder.rstrip("/")).find(convert.image_dir_pattern, suffix)
        path = folder.rstrip("/") + min(lefts) if lefts else ""
        return (path, *read_image(path).shape[:2]) if path else None
    except (UserError, OSError):
        return None
