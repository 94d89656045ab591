"""final_status: what became of a pipeline's steps, for its exit handler. It writes and logs; it sends nothing."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from stereo_core.files import atomic_path
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir
from stereo_core.values import from_json

LOG = logging.getLogger(__name__)
GOOD = ("SUCCEEDED", "UNKNOWN")  # states without a reason


def run(spec: Any, status: Any) -> Outcome:
    """Write summary.md and final_status.json in the results folder."""
    folder, status = results_dir(spec, "final_status"), by_steps(spec.status)
    text = summary(spec.title, spec.status)
    for name, content in (("summary.md", text), ("final_status.json", json.dumps(status, indent=2) + "\n")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    state, error = status.get("state", "UNKNOWN"), status.get("error") or {}
    told = f"{spec.title}: {state}"
    if state not in GOOD and error.get("message"):
        told += f": {'; '.join(error['message'].splitlines())}"
    (LOG.info if state == "SUCCEEDED" else LOG.error)("%s", told)
    return Outcome(told, artifacts={"summary": folder / "summary.md"})


def by_steps(status: dict[str, Any]) -> dict[str, Any]:
    """KFP's PipelineTaskFinalStatus (state, pipelineJobResourceName, error) with the steps that failed in its message.

    Its pipelineTaskName is left out: it names the block that the handler belongs to (exit-handler-1), not a step.
    """
    status, error = {key: value for key, value in status.items() if key != "pipelineTaskName"}, status.get("error")
    if not error:
        return status
    told = readable(error.get("message") or "", status.get("pipelineJobResourceName", ""))
    return status | {"error": error | {"message": told.strip()}}


def summary(title: str, status: dict[str, Any]) -> str:
    """The status as Markdown."""
    status = by_steps(status)
    state, error = status.get("state", "UNKNOWN"), status.get("error") or {}
    lines = [f"# {title}: {state}", ""]
    lines += [f"- run: {status['pipelineJobResourceName']}"] if status.get("pipelineJobResourceName") else []
    if state not in GOOD:
        lines += ["", "```", error.get("message") or NOT_TOLD, "```"]
    return "\n".join(lines) + "\n"


# Kubeflow leaves `error` empty, and gives an exit handler nothing else to find the step by.
NOT_TOLD = "which step failed, and why, the engine does not tell its exit handlers; the page of the run does"
_OF_A_PARENT = re.compile(r"no more retries left|child '", re.IGNORECASE)
_HINTS = {
    r"configmaps .*is forbidden": "Argo's controller may not write its cache, or a long template beside the pod:"
    " kubectl apply -k manifests/controller, or, for the cache, `stereo-pipelines argo --no-cache`",
    r"ConfigMap .*Too long": "Argo's cache is full: `stereo-pipelines argo-cache rm`",
}


def readable(message: str, run: str = "") -> str:
    """A line a failed step where the message is Argo's list of failed nodes, JSON in quotes; any other as it is.

    Args:
        message: The engine's.
        run: Its name for the run, which is a node too.
    """
    try:
        failures = from_json(from_json(message))
        nodes = [(one["displayName"], one.get("message") or "") for one in failures]
    except (ValueError, TypeError, KeyError, AttributeError):
        return message
    told = {_step(name): "" for name, _ in nodes if name != run}
    for name, why in sorted(nodes):  # train, train(0), train(1)
        if why and name != run and not _OF_A_PARENT.match(why):
            told[_step(name)] = why
    return "\n".join(f"{name}: {why or 'failed'}{_hint(why)}" for name, why in told.items())


def _step(node: str) -> str:
    """Whose attempt a node is."""
    return re.sub(r"\(\d+\)$", "", node)


def _hint(reason: str) -> str:
    return "".join(f"; {hint}" for pattern, hint in _HINTS.items() if re.search(pattern, reason))
