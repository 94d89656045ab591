"""final_status: what became of a pipeline's steps, for its exit handler. It writes and logs; it sends nothing."""

from __future__ import annotations

import json
import logging
from typing import Any

from stereo_core.files import atomic_path
from stereo_core.run.outcome import Outcome
from stereo_core.spec import results_dir

LOG = logging.getLogger(__name__)


def run(spec: Any, status: Any) -> Outcome:
    """Write summary.md and final_status.json in the results folder."""
    folder, state = results_dir(spec, "final_status"), spec.status.get("state", "UNKNOWN")
    text = summary(spec.title, spec.status)
    for name, content in (("summary.md", text), ("final_status.json", json.dumps(spec.status, indent=2) + "\n")):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    (LOG.info if state == "SUCCEEDED" else LOG.error)("%s: %s", spec.title, state)
    return Outcome(f"{spec.title}: {state}", artifacts={"summary": folder / "summary.md"})


def summary(title: str, status: dict) -> str:
    """KFP's PipelineTaskFinalStatus (state, pipelineJobResourceName, pipelineTaskName, error) as Markdown."""
    state, error = status.get("state", "UNKNOWN"), status.get("error") or {}
    lines = [f"# {title}: {state}", ""]
    lines += [f"- run: {status['pipelineJobResourceName']}"] if status.get("pipelineJobResourceName") else []
    lines += [f"- steps: {status['pipelineTaskName']}"] if status.get("pipelineTaskName") else []
    if state != "SUCCEEDED" and error.get("message"):
        lines += ["", "```", readable(error["message"]).strip(), "```"]
    return "\n".join(lines) + "\n"


def readable(message: str) -> str:
    """A line a failed step where the message is Argo's list of them, JSON in quotes; any other as it is."""
    try:
        failures = json.loads(json.loads(message))
        return "\n".join(f"{one['displayName']}: {one.get('message') or 'failed'}" for one in failures)
    except (ValueError, TypeError, KeyError, AttributeError):
        return message
