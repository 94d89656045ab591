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
from stereo_core.step.message import Message, read_message
from stereo_core.step.ports import Artifact, check_artifact, check_ports
from stereo_core.step.publish import Run, publish
from stereo_core.step.sources import CODING
from stereo_core.step.wiring import user_spec, wire
from stereo_core.verbs import steps

NODE_VARIABLES = ("PET_NODE_RANK", "NODE_RANK", "RANK")  # as training/distribution.py reads them


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code (see `stereo_core.run.perform`)."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        with sigterm_raises():  # hashing large inputs takes minutes
            if len(argv) != 2 or argv[0] not in steps():
                raise UserError(
                    f"usage: depth_net-launch ACTION EXECUTOR_INPUT_JSON|@FILE, ACTION one of {', '.join(steps())}"
                )
            return launch(argv[0], _text(argv[1]))
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Report an error that ended the run before its action began; returns the exit code."""
    from stereo_core.run.failure import exit_code, is_explained, reason  # imports pydantic

    text = str(error) if isinstance(error, UserError) else reason(error)
    explain(error, text)
    if isinstance(error, Exception) and not is_explained(error):
        traceback.print_exception(error)
    print(f"depth_net-launch: error: {text}", file=sys.stderr)
    return exit_code(error)


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
    message = read_message(verb, executor_input)
    inputs, output_file = message.inputs, message.output_file
    results = output_file.parent / "results"
    tree, own_keys = trees_of(verb, message, results)
    if verb == "train" and _is_another_attempt(output_file.parent, executor_input):
        train = tree["train"]
        train["resume_training_checkpoint_path"] = train.get("resume_training_checkpoint_path") or "auto"

    from stereo_core.run.perform import perform, set_up_logging
    from stereo_core.spec import ExperimentSpec, spec_from_dict

    def publish_all(outcome: Outcome) -> None:
        published = publish(Run(verb, outcome, results, own_keys), message.outputs)
        _write_parameters(outcome, message.figures)
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


def trees_of(verb: str, message: Message, results: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec of a task, and the part of it that the user set; `results` is the folder for the task's results.

    Raises:
        UserError: an input is missing or of another kind, or the parameters are not a valid spec.
    """
    for artifact in message.inputs.values():
        check_artifact(artifact)
    check_ports(verb, message.inputs)
    parameters = message.parameters
    tree = user_spec(verb, parameters, message.inputs)
    own_keys = copy.deepcopy(tree)
    coding = {name: parameters[name] for name in CODING if parameters.get(name)}  # "" and 0 leave the key to the spec
    wire(verb, tree, parameters.get("dataset_name", ""), message.inputs, results, coding)
    return tree, own_keys


def _write_parameters(outcome: Outcome, wanted: dict[str, Path]) -> None:
    """Write each output parameter (a metric of the outcome) to its file."""
    for name, file in wanted.items():
        if name not in outcome.kpi:
            raise UserError(
                f"output {name}: this run has no metric of that name; it has {', '.join(outcome.kpi) or 'none'}"
            )
        with atomic_path(file) as temporary:
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
