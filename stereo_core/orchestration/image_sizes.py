"""Finds image sizes that do not match, before the first step runs: ONNX file against engine, engine against images.
The steps check the same, but only after the training."""

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
    """A step of ours with a valid, complete spec; without `verb` and `spec` an importer that reads from `place`."""

    task: Task
    verb: str = ""
    spec: Section | None = None
    place: str = ""


def complaints(known: dict[str, Step]) -> Iterator[tuple[str, str]]:
    """(name of a step, problem) for sizes that do not match; `known` holds the known steps by name."""
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
    """The step that produces an input."""
    source = step.task.artifacts.get(port)
    return known.get(source.task) if isinstance(source, Output) else None


def _exported(step: Step, known: dict[str, Step]) -> dict[str, int]:
    """Height and width of a step's ONNX file; empty if they are dynamic or unknown.

    They are unknown for an imported model, which may be an ONNX file with its own size.
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
                f"gen_trt_engine.min_{side}, opt_{side}, max_{side} do not include export.input_{side} {static}; leave "
                "them out, or export with dynamic size (export.dynamic_hw=true)"
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
            f"evaluate.resize: none: the engine takes {frame['width']} x {frame['height']} px (width x height), but "
            f"{image} has {width} x {height}; set pad or stretch, or build an engine for this size"
        )


def _engine_file(place: str) -> dict[str, int]:
    """Height and width of an engine file on this machine; empty if its size is dynamic or unknown."""
    from stereo_core.engines.files import read_sidecar

    known = read_sidecar(place) or {}
    frame = {side: size for side in SIDES if (size := known.get(f"input_{side}")) is not None}
    open_size = any(known.get(f"min_{side}") != known.get(f"max_{side}") for side in SIDES)
    return {} if open_size or len(frame) < len(SIDES) else frame


def _first_image(folder: str, convert: ConvertSpec) -> tuple[str, int, int] | None:
    """The first left image that convert finds, with height and width; None if convert itself will report an error."""
    from stereo_core.data.images import read_image
    from stereo_core.data.trees import Tree, dotted

    suffix = dotted(convert.image_extension).lower() if len(convert.image_extension) > 1 else ""
    try:
        lefts = Tree(folder.rstrip("/")).find(convert.image_dir_pattern, suffix)
        path = folder.rstrip("/") + min(lefts) if lefts else ""
        return (path, *read_image(path).shape[:2]) if path else None
    except (UserError, OSError):
        return None
