"""What a KFP engine says to a step, and what the step answers."""

from __future__ import annotations

import json
from pathlib import Path

from stereo_core.step.ports import Artifact


def item(path: Path, **metadata) -> dict:
    return {"artifacts": [{"name": path.name, "type": {"schemaTitle": "x"}, "uri": str(path), "metadata": metadata}]}


def executor_input(folder: Path, inputs: dict, outputs: tuple, parameters: dict | None = None) -> str:
    """What an engine hands over for a task that writes into `folder`."""
    return json.dumps(
        {
            "inputs": {"parameterValues": parameters or {}, "artifacts": inputs},
            "outputs": {
                "artifacts": {port: item(folder / port) for port in outputs},
                "outputFile": str(folder / "executor_output.json"),
            },
        }
    )


def output_of(folder: Path, port: str) -> dict:
    return json.loads((folder / "executor_output.json").read_text())["artifacts"][port]["artifacts"][0]


def last_status(folder: Path) -> dict:
    return json.loads((folder / "results" / "status.json").read_text().splitlines()[-1])


def artifact(port: str, path: Path, kind: str = "", **metadata) -> Artifact:
    return Artifact(port, kind or port, path, uri=str(path), name=port, metadata=metadata)
