"""Writes a verb's outcome to the output artifacts, and describes them for executor_output.json."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_core import __version__
from stereo_core.errors import UserError
from stereo_core.files import atomic_path, sha256_of, size_of
from stereo_core.run.outcome import Outcome
from stereo_core.run.parameters import set_key
from stereo_core.run.status import warnings_in
from stereo_core.step.ports import Artifact
from stereo_core.step.results import put_result
from stereo_core.values import as_metadata


@dataclass(frozen=True)
class Run:
    """A finished verb; `user_spec` is the spec as the user gave it, without the keys set from ports."""

    verb: str
    outcome: Outcome
    results: Path
    user_spec: dict[str, Any]

    def made(self, port: str) -> Path:
        """The file or folder that the run wrote for an output.

        Raises:
            UserError: it wrote none.
        """
        if port not in self.outcome.artifacts:
            raise UserError(
                f"output {port}: this run of {self.verb} wrote nothing for it ({self.outcome.message}), but a pipeline "
                "step must; use runs without results, such as train.is_dry_run, only on the command line"
            )
        return Path(self.outcome.artifacts[port])


def publish(run: Run, outputs: dict[str, Artifact]) -> dict[str, Any]:
    """Write the results to the artifacts' paths; returns the `artifacts` part of executor_output.json.

    Raises:
        UserError: the run has no result for a port. Nothing is published then.
    """
    for artifact in outputs.values():
        if artifact.kind not in _MADE_HERE:
            run.made(artifact.port)
    spec_digest = hashlib.sha256(json.dumps(run.user_spec, sort_keys=True).encode()).hexdigest()
    published = {}
    for port, artifact in outputs.items():
        metadata = _WRITERS.get(artifact.kind, _put_result)(artifact, run)
        metadata |= as_metadata(run.outcome.metadata.get(port, {}))
        once = functools.cache(sha256_of)
        if "file" in metadata:
            metadata["folder_sha256"] = sha256_of(artifact.path, once)
        metadata |= {
            "kind": metadata.get("kind", artifact.kind),
            "sha256": once(artifact.path / metadata.get("file", "")),
            "bytes": size_of(artifact.path),
            "producer": f"stereo-pipelines {__version__} {run.verb}",
            "spec_sha256": spec_digest,
        }
        item = {"name": artifact.name, "type": artifact.type, "uri": artifact.uri, "metadata": metadata}
        published[port] = {"artifacts": [item]}
    return published


def _put_metrics(artifact: Artifact, run: Run) -> dict[str, Any]:
    metadata: dict[str, Any] = as_metadata(run.outcome.kpi)
    warned = warnings_in(run.results)
    content = metadata | ({"warnings": warned} if warned else {})  # for the verb `report`
    _write(artifact.path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return metadata | {"format": "json"}


def _put_spec(artifact: Artifact, run: Run) -> dict[str, Any]:
    """Write the user's spec with the best values as a spec file for `train`, without the keys that ports set."""
    import yaml

    tree = {name: value for name, value in run.user_spec.items() if name != "automl"}
    for key, value in run.outcome.metadata[artifact.port].items():
        set_key(tree, key, value)
    _write(artifact.path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return {"format": "yaml"}


def _put_report(artifact: Artifact, run: Run) -> dict[str, Any]:
    from stereo_core.report.html import action_report

    own = run.outcome.artifacts.get(artifact.port)
    text = own.read_text(encoding="utf-8") if own else action_report(run.results, run.outcome, run.verb)
    _write(artifact.path, text)
    return {"format": "html"}


def _put_markdown(artifact: Artifact, run: Run) -> dict[str, Any]:
    _write(artifact.path, run.made(artifact.port).read_text(encoding="utf-8"))
    return {"format": "md"}


def _put_result(artifact: Artifact, run: Run) -> dict[str, Any]:
    return put_result(artifact, run.made(artifact.port))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_WRITERS = {
    "metrics": _put_metrics,
    "spec": _put_spec,
    "report": _put_report,
    "card": _put_markdown,
    "summary": _put_markdown,
}
"""Kind of an output -> its writer. Every other kind is a model file or a folder that the verb wrote."""
_MADE_HERE = ("metrics", "spec", "report")  # made from the outcome; the verb need not write a file
