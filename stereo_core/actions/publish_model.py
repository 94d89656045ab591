"""publish_model: publish a model file, its companion files, its figures and a model card for others.

<uri>/<version>/ contains the files; the version is a digest of them, so that nothing is ever overwritten.
<uri>/published.json names the version. It is written last and atomically: readers always find a complete model, either
the previous one or this one, even during an ongoing or interrupted publication.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stereo_core import __version__, storage
from stereo_core.actions.report import comparison, read_figures, read_settings
from stereo_core.errors import DataError, ModelError, NotWrittenError, RefusedResult, SpecError
from stereo_core.files import atomic_path, sha256_of
from stereo_core.report.describe import describe
from stereo_core.report.figures import EXPLAINED
from stereo_core.report.html import figure
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir
from stereo_core.values import from_json

LOG = logging.getLogger(__name__)
NOTE, CARD, FIGURES = "published.json", "README.md", "metrics.json"


def run(spec: Any, status: Any) -> Outcome:
    """Publish `model_path` with the figures of `metrics_path` at `uri`.

    Raises:
        SpecError: `uri` is a file; another model is already published there and `existing` is `refuse`; or there are
            no metrics to compare with.
        ModelError: there is no model file.
        DataError: the metrics cannot be read, or are those of another model.
        RefusedResult: with `existing` `compare`, the new model's epe is higher by more than `max_epe_increase`.
        StorageError: the storage failed; the previous model is still published.
    """
    uri = spec.uri.rstrip("/")
    if not storage.is_uri(uri) and Path(uri).is_file():
        raise SpecError(f"uri: {uri} is a file; name a folder")
    about = describe(spec.model_path)
    model = Path(about["file"])
    figures = _figures(Path(spec.metrics_path), about) if spec.metrics_path else {}
    before = published(uri)
    folder = results_dir(spec, "publish_model") / "published"
    digests = _gather(model, about["sha256"], figures, folder)
    version = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
    if before.get("version") == version:  # for example another attempt of this step
        before = {}
    if before:
        _allow(spec, figures, before)
    _write(folder / CARD, model_card(spec.title or model.stem, model.name, about, figures, before.get("metrics", {})))
    digests[CARD] = sha256_of(folder / CARD)
    for name, digest in digests.items():
        _copy(folder / name, f"{uri}/{version}/{name}", digest)
    note = {"version": version, "file": model.name, "kind": about["kind"], "sha256": digests, "metrics": figures}
    _write(folder / NOTE, json.dumps(note | {"producer": f"stereo-pipelines {__version__}"}, indent=2) + "\n")
    _copy(folder / NOTE, f"{uri}/{NOTE}", sha256_of(folder / NOTE))
    metadata = {"card": {"published": f"{uri}/{version}", "version": version, "model_sha256": about["sha256"]}}
    return Outcome(f"{model.name} is published at {uri}/{version}", figures, {"card": folder / CARD}, metadata)


def _figures(path: Path, about: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation; a warning if nothing says which model it measured.

    An ONNX file has the figures of the checkpoint that it was exported from, or of an engine that was built from it.

    Args:
        about: what `describe` says of the model.

    Raises:
        DataError: they are those of another model.
    """
    settings = read_settings(path)
    measured, exported = settings.get("sha256"), about.get("checkpoint_sha256")
    if {measured, settings.get("onnx_sha256")} & {about["sha256"], exported} - {None}:
        return read_figures(path)
    is_onnx = about["kind"] == "onnx"
    if measured is None or (is_onnx and exported is None and "engine" not in settings):
        LOG.warning(
            "metrics_path: %s: nothing says whether these are the figures of %s; to be sure, %s with this version",
            *(path, about["file"], "export and evaluate it again" if is_onnx else "evaluate it again"),
        )
        return read_figures(path)
    kind = "engine" if "engine" in settings else "checkpoint"
    mend = "the checkpoint that it was exported from, or an engine that was built from it" if is_onnx else "this one"
    raise DataError(
        f"metrics_path: {path}: these are the figures of another {kind} (its SHA-256 begins with {measured[:12]}, "
        f"the model's with {about['sha256'][:12]}); evaluate {mend}"
    )


def published(uri: str) -> dict[str, Any]:
    """The note on the model published at a place; empty if there is none.

    Raises:
        DataError: the note cannot be read.
        StorageError: as storage.read.
    """
    if storage.is_uri(uri):
        there = NOTE in storage.children(uri, start=NOTE)
        text = storage.read(f"{uri}/{NOTE}") if there else b""
    else:
        there = Path(uri, NOTE).is_file()
        text = Path(uri, NOTE).read_bytes() if there else b""
    if not there:
        return {}
    try:
        note = from_json(text)
        return {"version": note["version"], "metrics": note["metrics"]}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{uri}/{NOTE}: the file was not written by publish_model; choose another uri, or remove the file"
        ) from None


def _allow(spec: Any, figures: dict[str, Any], before: dict[str, Any]) -> None:
    """Raise unless the published model may be replaced by this one."""
    if spec.existing == "refuse":
        raise SpecError(
            f"uri: version {before['version']} is already published at {spec.uri}; set existing=replace or "
            "existing=compare,"
            " or choose another uri"
        )
    if spec.existing == "replace":
        return
    if "epe" not in figures or "epe" not in before["metrics"]:
        whose = f"version {before['version']}, published at {spec.uri}," if "epe" in figures else "metrics_path"
        raise SpecError(f"existing=compare needs the epe of both models, but {whose} has none; set existing=replace")
    increase = figures["epe"] - before["metrics"]["epe"]
    if not increase <= spec.max_epe_increase:  # written this way so that NaN is refused too
        raise RefusedResult(
            f"nothing was published: epe {figures['epe']:.4f} px is {increase:.4f} px above that of the model published"
            f" at {spec.uri} (version {before['version']}, {before['metrics']['epe']:.4f} px);"
            f" max_epe_increase allows {spec.max_epe_increase} px; raise it, or set existing=replace"
        )


def model_card(title: str, name: str, about: dict[str, Any], figures: dict[str, Any], before: dict[str, Any]) -> str:
    """The model card as Markdown: a description of the model, its figures, and those of the previous model."""
    known = {key: value for key, value in about.items() if isinstance(value, str | int | float)} | {"file": name}
    parts = [f"# {title}", _table(("", "value"), list(known.items()))]
    if figures:
        names, columns = (["this model", "published before"], [figures, before]) if before else (["value"], [figures])
        parts += ["## Figures", EXPLAINED]
        parts += [_table(tuple(table.columns), table.rows) for table in comparison(names, columns)]
    parts += ["If the training began with NVIDIA's published weights, their licence applies to this model, too."]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[Any, ...], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return (figure(value) if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")


def _gather(model: Path, model_sha256: str, figures: dict[str, Any], folder: Path) -> dict[str, str]:
    """Copy the model, its companion files and its figures to one folder; return each file's sha256."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in [model, *model.parent.glob(f"{glob.escape(model.name)}.*")]:
        shutil.copyfile(file, folder / file.name)
    if figures:
        _write(folder / FIGURES, json.dumps(figures, indent=2) + "\n")
    digests = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    if digests[model.name] != model_sha256:
        raise ModelError(f"model_path: {model} changed while it was being copied; publish it again")
    return digests


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _copy(file: Path, uri: str, digest: str) -> None:
    """Copy a file to a place atomically, and check the copy."""
    if storage.is_uri(uri):
        storage.upload(file, uri)  # verifies the stored object
        return
    with atomic_path(uri) as temporary:
        shutil.copyfile(file, temporary)
        if sha256_of(temporary) != digest:
            raise NotWrittenError(f"{uri}: the copy differs from {file}; check that disk, and publish again")
