"""Runs a verb with KFP's executor protocol: `depth_net-launch ACTION EXECUTOR_INPUT_JSON|@FILE`.

It reads KFP's ExecutorInput message (JSON), runs the verb and writes executor_output.json. It uses only the standard
library, so that an image needs no kfp. Kubeflow, Argo and the local engine all start this command. @FILE is for a
message longer than a command-line argument may be (128 KiB); Argo from 3.7.10 on passes it that way.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from stereo_core.errors import UserError
from stereo_core.files import atomic_path
from stereo_core.progress import heartbeat
from stereo_core.run.outcome import Outcome
from stereo_core.run.termination import Terminated, explain, sigterm_raises
from stereo_core.step.inputs import check_digest, check_frame
from stereo_core.step.ports import Artifact, check_artifact, check_ports, input_artifacts, output_artifacts
from stereo_core.step.publish import Run, publish
from stereo_core.step.sources import CODING
from stereo_core.step.wiring import user_spec, wire
from stereo_core.values import from_json, with_integers
from stereo_core.verbs import steps

NODE_VARIABLES = ("PET_NODE_RANK", "NODE_RANK", "RANK")  # as training/distribution.py reads them


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code (see `stereo_core.run.perform`)."""
    argv = sys.argv[1:] if argv is None else argv
    received: list[int] = []
    try:
        with sigterm_raises(received):  # hashing large inputs takes minutes
            if len(argv) != 2 or argv[0] not in steps():
                raise UserError(
                    f"usage: depth_net-launch ACTION EXECUTOR_INPUT_JSON|@FILE, ACTION one of {', '.join(steps())}"
                )
            return launch(argv[0], _text(argv[1]))
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _failed(Terminated("SIGTERM") if received else error)


def _failed(error: BaseException) -> int:
    """Report an error that ended the run before its action began; returns the exit code."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    explain(error, reason)
    if isinstance(error, Exception) and not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"depth_net-launch: error: {reason}", file=sys.stderr)
    if isinstance(error, Exception):
        return 2 if isinstance(error, UserError) else 1
    return 143 if isinstance(error, Terminated) else 130


def _text(argument: str) -> str:
    """The ExecutorInput message, given directly or as @FILE."""
    if not argument.startswith("@"):
        return argument
    try:
        return Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"EXECUTOR_INPUT_JSON: cannot read {argument[1:]}: {error}") from None


def launch(verb: str, executor_input: str) -> int:
    """Check the inputs, build the spec, run the verb, publish its outputs."""
    given, outputs = _read(executor_input)
    output_file = Path(outputs["outputFile"])
    inputs = input_artifacts(verb, given)
    for artifact in inputs.values():
        check_artifact(artifact)
    check_ports(verb, inputs)
    wanted = output_artifacts(verb, outputs)
    parameters = with_integers(given.get("parameterValues") or {})
    results = output_file.parent / "results"

    tree = user_spec(verb, parameters, inputs)
    own_keys = copy.deepcopy(tree)
    coding = {name: parameters[name] for name in CODING if parameters.get(name)}  # "" and 0 leave the key to the spec
    wire(verb, tree, parameters.get("dataset_name", ""), inputs, results, coding)
    if verb == "train" and _is_another_attempt(output_file.parent, executor_input):
        train = tree["train"]
        train["resume_training_checkpoint_path"] = train.get("resume_training_checkpoint_path") or "auto"

    from stereo_core.run.perform import perform, set_up_logging
    from stereo_core.spec import ExperimentSpec, spec_from_dict

    def publish_all(outcome: Outcome) -> None:
        published = publish(Run(verb, outcome, results, own_keys), wanted)
        _write_parameters(outcome, outputs.get("parameters") or {})
        with atomic_path(output_file) as temporary:
            temporary.write_text(json.dumps({"parameterValues": {}, "artifacts": published}, allow_nan=False))

    spec = spec_from_dict(verb, tree)
    if verb == "trt_evaluate" and isinstance(spec, ExperimentSpec) and spec.evaluate.resize == "none":
        check_frame(inputs["engine"], spec.dataset.test_dataset.data_sources[0])
    # Last, because hashing large inputs takes minutes; models first, because they are smaller than data sets.
    set_up_logging()
    for artifact in sorted(inputs.values(), key=lambda one: not one.is_model):
        _compare(artifact)
    return perform(verb, spec, on_outcome=publish_all)


def _compare(artifact: Artifact) -> None:
    with heartbeat(lambda: f"input {artifact.port}: checking its sha256"):
        check_digest(artifact)


def _read(executor_input: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `inputs` and `outputs` of an ExecutorInput message."""
    try:
        message = from_json(executor_input)
        Path(message["outputs"]["outputFile"])
        return message.get("inputs") or {}, message["outputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"EXECUTOR_INPUT_JSON: not a valid ExecutorInput message: {type(error).__name__}: {error}"
        ) from None


def _write_parameters(outcome: Outcome, wanted: dict[str, Any]) -> None:
    """Write each output parameter (a metric of the outcome) to its file."""
    for name, entry in wanted.items():
        if name not in outcome.kpi:
            raise UserError(
                f"output {name}: this run has no metric of that name; it has {', '.join(outcome.kpi) or 'none'}"
            )
        with atomic_path(entry["outputFile"]) as temporary:
            temporary.write_text(json.dumps(outcome.kpi[name]))


def _is_another_attempt(folder: Path, executor_input: str) -> bool:
    """Whether the same task was attempted in this folder before; records this attempt.

    In distributed training each node records its own attempts, because nodes may share the folder.
    """
    node = next((os.environ[name] for name in NODE_VARIABLES if name in os.environ), "0")
    note = folder / f"attempted.{node}"
    digest = hashlib.sha256(executor_input.encode()).hexdigest()
    before = note.read_text() if note.is_file() else ""
    with atomic_path(note) as temporary:
        temporary.write_text(digest)
    return before == digest


if __name__ == "__main__":
    sys.exit(main())
