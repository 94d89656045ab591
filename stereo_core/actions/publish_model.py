"""publish_model: a model file, what lies beside it, its figures and a model card, put where others take it from.

<uri>/<version>/ holds the files; the version is a digest of them, so that nothing there is ever overwritten.
<uri>/published.json names the version. It is written last, in one piece: whoever reads it finds a whole model, the one
before or this one, also while a publication goes on or when it was cut off.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stereo_core import __version__, storage
from stereo_core.actions.report import comparison, read_figures
from stereo_core.errors import DataError, ModelError, RefusedResult, SpecError
from stereo_core.files import atomic_path, sha256_of
from stereo_core.report.describe import describe
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir
from stereo_core.values import from_json

NOTE, CARD, FIGURES = "published.json", "README.md", "metrics.json"


def run(spec: Any, status: Any) -> Outcome:
    """Publish `model_path` with the figures of `metrics_path` at `uri`.

    Raises:
        SpecError: another model is published there already and `existing` is `refuse`; or no metrics to compare with.
        ModelError: no model file.
        RefusedResult: with `existing` `compare`, the new model's epe is higher by more than `max_epe_increase`.
        StorageError: the storage failed; there lies what was there before.
    """
    model, uri = Path(spec.model_path), spec.uri.rstrip("/")
    about = describe(model)
    figures = read_figures(Path(spec.metrics_path)) if spec.metrics_path else {}
    before = published(uri)
    folder = results_dir(spec, "publish_model") / "published"
    digests = _gather(model, about["sha256"], figures, folder)
    version = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:12]
    if before.get("version") == version:  # another attempt, say
        before = {}
    if before:
        _allow(spec, figures, before)
    _write(folder / CARD, model_card(spec.title or model.stem, model.name, about, figures, before.get("metrics", {})))
    digests[CARD] = sha256_of(folder / CARD)
    for name, digest in digests.items():
        _put(folder / name, f"{uri}/{version}/{name}", digest)
    note = {"version": version, "file": model.name, "kind": about["kind"], "sha256": digests, "metrics": figures}
    _write(folder / NOTE, json.dumps(note | {"producer": f"stereo-pipelines {__version__}"}, indent=2) + "\n")
    _put(folder / NOTE, f"{uri}/{NOTE}", sha256_of(folder / NOTE))
    metadata = {"card": {"published": f"{uri}/{version}", "version": version, "model_sha256": about["sha256"]}}
    return Outcome(f"{model.name} is published at {uri}/{version}", figures, {"card": folder / CARD}, metadata)


def published(uri: str) -> dict[str, Any]:
    """The note of what is published at a place; empty where nothing is.

    Raises:
        DataError: the note can not be read.
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
        raise DataError(f"{uri}/{NOTE}: no note of publish_model; choose another uri, or remove the file") from None


def _allow(spec: Any, figures: dict[str, Any], before: dict[str, Any]) -> None:
    """Whether what is published may give way to another model."""
    if spec.existing == "refuse":
        raise SpecError(
            f"uri: version {before['version']} is published at {spec.uri}; set existing=replace or existing=compare,"
            " or choose another uri"
        )
    if spec.existing == "replace":
        return
    if "epe" not in figures or "epe" not in before["metrics"]:
        whose = f"version {before['version']}, published at {spec.uri}," if "epe" in figures else "metrics_path"
        raise SpecError(f"existing=compare needs the epe of both models, but {whose} has none; set existing=replace")
    increase = figures["epe"] - before["metrics"]["epe"]
    if not increase <= spec.max_epe_increase:  # so that NaN is refused too
        raise RefusedResult(
            f"epe {figures['epe']:.4f} px is {increase:.4f} px above that of the model published at {spec.uri}"
            f" (version {before['version']}, {before['metrics']['epe']:.4f} px); {spec.max_epe_increase} px are allowed"
            " (max_epe_increase). Nothing was published"
        )


def model_card(title: str, name: str, about: dict[str, Any], figures: dict[str, Any], before: dict[str, Any]) -> str:
    """What a reader wants to know of a model, as Markdown: what it is, its figures, and those of the one before."""
    known = {key: value for key, value in about.items() if isinstance(value, str | int | float)} | {"file": name}
    parts = [f"# {title}", _table(("", "value"), list(known.items()))]
    if figures:
        names, columns = (["this model", "published before"], [figures, before]) if before else (["value"], [figures])
        parts += ["## Figures", "epe and rmse in px, bp1, bp2, bp3 and d1 as shares in 0..1."]
        parts += [_table(tuple(table.columns), table.rows) for table in comparison(names, columns)]
    parts += [
        "The published FoundationStereo weights have licences of their own, which hold for what is trained from them."
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[Any, ...], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")


def _gather(model: Path, model_sha256: str, figures: dict[str, Any], folder: Path) -> dict[str, str]:
    """The model, what lies beside it under its name, and its figures, in one folder; returns each file's sha256."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in [model, *model.parent.glob(f"{glob.escape(model.name)}.*")]:
        shutil.copyfile(file, folder / file.name)
    if figures:
        _write(folder / FIGURES, json.dumps(figures, indent=2) + "\n")
    digests = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    if digests[model.name] != model_sha256:
        raise ModelError(f"model_path: {model} changed while it was copied; publish it again")
    return digests


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _put(file: Path, uri: str, digest: str) -> None:
    """Copy a file to a place, whole or not at all, and make sure that it is there."""
    if storage.is_uri(uri):
        storage.upload(file, uri)  # compares what was stored
        return
    with atomic_path(uri) as temporary:
        shutil.copyfile(file, temporary)
        if sha256_of(temporary) != digest:
            raise OSError(f"{uri}: what was written is not {file}; is the disk sound?")
