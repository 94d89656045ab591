"""final_status: report the result of a pipeline's steps, as its exit handler. It writes and logs; it sends nothing."""

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
GOOD = ("SUCCEEDED", "UNKNOWN")  # states that need no reason


def run(spec: Any, status: Any) -> Outcome:
    """Write summary.md and final_status.json in the results folder."""
    folder, status = results_dir(spec, "final_status"), by_steps(spec.status)
    text = summary(spec.title, spec.status)
    for name, content in (("summary.md", text), ("final_status.json", json.dumps(status, indent=2) + "\n")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    state, error = status.get("state", "UNKNOWN"), status.get("error") or {}
    message = f"{spec.title}: {state}"
    if state not in GOOD and error.get("message"):
        message += f": {'; '.join(error['message'].splitlines())}"
    (LOG.info if state == "SUCCEEDED" else LOG.error)("%s", message)
    return Outcome(message, artifacts={"summary": folder / "summary.md"})


def by_steps(status: dict[str, Any]) -> dict[str, Any]:
    """KFP's PipelineTaskFinalStatus (state, pipelineJobResourceName, error) with the failed steps in its message.

    Its pipelineTaskName is left out: it names the handler's block (exit-handler-1), not a step.
    """
    status, error = {key: value for key, value in status.items() if key != "pipelineTaskName"}, status.get("error")
    if not error:
        return status
    error = error if isinstance(error, dict) else {"message": error}  # as a person may write it
    message = readable(str(error.get("message") or ""), str(status.get("pipelineJobResourceName", "")))
    return status | {"error": error | {"message": message.strip()}}


def summary(title: str, status: dict[str, Any]) -> str:
    """The status as Markdown."""
    status = by_steps(status)
    state, error = status.get("state", "UNKNOWN"), status.get("error") or {}
    lines = [f"# {title}: {state}", ""]
    lines += [f"- run: {status['pipelineJobResourceName']}"] if status.get("pipelineJobResourceName") else []
    if state not in GOOD:
        lines += ["", "```", error.get("message") or NO_REASON, "```"]
    return "\n".join(lines) + "\n"


# Kubeflow leaves `error` empty and gives an exit handler no other way to find the failed step.
NO_REASON = "the pipeline engine does not report to exit handlers which step failed and why; see the page of the run"
_OF_A_PARENT = re.compile(r"no more retries left|child '", re.IGNORECASE)
_HINTS = {
    r"configmaps .*is forbidden": "Argo's controller may not write its cache, or a long template's ConfigMap; run"
    " kubectl apply -k manifests/controller, or, for the cache, `stereo-pipelines argo --no-cache`",
    r"ConfigMap .*Too long": "Argo's cache is full: `stereo-pipelines argo-cache rm`",
}


def readable(message: str, run: str = "") -> str:
    """One line per failed step if the message is Argo's list of failed nodes (quoted JSON); any other message
    unchanged.

    Args:
        message: The engine's message.
        run: The engine's name of the run, which is also a node.
    """
    try:
        failures = from_json(from_json(message))
        nodes = [(one["displayName"], one.get("message") or "") for one in failures]
    except (ValueError, TypeError, KeyError, AttributeError):
        return message
    reasons = {_step(name): "" for name, _ in nodes if name != run}
    for name, why in sorted(nodes):  # train, train(0), train(1)
        if why and name != run and not _OF_A_PARENT.match(why):
            reasons[_step(name)] = why
    return "\n".join(f"{name}: {why or 'failed'}{_hint(why)}" for name, why in reasons.items())


def _step(node: str) -> str:
    """The step that a node is an attempt of."""
    return re.sub(r"\(\d+\)$", "", node)


def _hint(reason: str) -> str:
    return "".join(f"; {hint}" for pattern, hint in _HINTS.items() if re.search(pattern, reason))
