"""The verbs behind KFP's executor protocol: `depth_net-launch ACTION EXECUTOR_INPUT_JSON|@FILE`.

ExecutorInput (JSON) comes in, the verb runs, executor_output.json goes out. Standard library only around the verb, so
that an image needs no kfp. Kubeflow, Argo and the local engine all start this same command; @FILE is for a message
longer than an argument may be (128 KiB), which Argo from 3.7.10 on gives so.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

from stereo_core.errors import UserError
from stereo_core.files import atomic_path
from stereo_core.progress import heartbeat
from stereo_core.run.outcome import Outcome
from stereo_core.run.termination import Terminated, explain, sigterm_raises
from stereo_core.step.inputs import check_digest, check_frame
from stereo_core.step.message import Message, read_message
from stereo_core.step.ports import check_artifact, check_ports
from stereo_core.step.publish import Run, publish
from stereo_core.step.sources import CODING
from stereo_core.step.wiring import user_spec, wire
from stereo_core.verbs import steps

NODE_VARIABLES = ("PET_NODE_RANK", "NODE_RANK", "RANK")  # as training/distribution.py reads them


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns its exit code (see `stereo_core.run.perform`)."""
    argv = sys.argv[1:] if argv is None else argv
    received: list[int] = []
    try:
        with sigterm_raises(received):  # digests of large inputs take minutes
            if len(argv) != 2 or argv[0] not in steps():
                raise UserError(
                    f"usage: depth_net-launch ACTION EXECUTOR_INPUT_JSON|@FILE, ACTION one of {', '.join(steps())}"
                )
            return launch(argv[0], _text(argv[1]))
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _failed(Terminated("SIGTERM") if received else error)


def _failed(error: BaseException) -> int:
    """Say what ended the run before its action began; its exit code."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    explain(error, reason)
    if isinstance(error, Exception) and not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"depth_net-launch: error: {reason}", file=sys.stderr)
    if isinstance(error, Exception):
        return 2 if isinstance(error, UserError) else 1
    return 143 if isinstance(error, Terminated) else 130


def _text(argument: str) -> str:
    """The message, which may be in a file."""
    if not argument.startswith("@"):
        return argument
    try:
        return Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"EXECUTOR_INPUT_JSON: {argument[1:]} can not be read: {error}") from None


def launch(verb: str, executor_input: str) -> int:
    """Check the inputs, build the spec, perform the verb, publish its outputs."""
    message = read_message(verb, executor_input)
    inputs, output_file = message.inputs, message.output_file
    results = output_file.parent / "results"
    tree, said = trees_of(verb, message, results)
    if verb == "train" and _is_another_attempt(output_file.parent, executor_input):
        train = tree["train"]
        train["resume_training_checkpoint_path"] = train.get("resume_training_checkpoint_path") or "auto"

    from stereo_core.run.perform import perform, set_up_logging
    from stereo_core.spec import spec_from_dict

    def publish_all(outcome: Outcome) -> None:
        published = publish(Run(verb, outcome, results, said), message.outputs)
        _give_parameters(outcome, message.figures)
        with atomic_path(output_file) as temporary:
            temporary.write_text(json.dumps({"parameterValues": {}, "artifacts": published}, allow_nan=False))

    spec = spec_from_dict(verb, tree)
    if verb == "trt_evaluate" and spec.evaluate.resize == "none":
        check_frame(inputs["engine"], spec.dataset.test_dataset.data_sources[0])
    # Last, since large inputs take minutes; models, which are smaller, before data.
    set_up_logging()
    for artifact in sorted(inputs.values(), key=lambda one: not one.is_model):
        with heartbeat(lambda artifact=artifact: f"input {artifact.port}: comparing its sha256"):
            check_digest(artifact)
    return perform(verb, spec, on_outcome=publish_all)


def trees_of(verb: str, message: Message, results: Path) -> tuple[dict, dict]:
    """The spec of a task, and what of it the user said; `results` is the folder for what it makes.

    Raises:
        UserError: an input that is missing, absent or of another kind; parameters that are no spec.
    """
    for artifact in message.inputs.values():
        check_artifact(artifact)
    check_ports(verb, message.inputs)
    parameters = message.parameters
    tree = user_spec(verb, parameters, message.inputs)
    said = copy.deepcopy(tree)
    coding = {name: parameters[name] for name in CODING if parameters.get(name)}  # "" and 0: the spec's
    wire(verb, tree, parameters.get("dataset_name", ""), message.inputs, results, coding)
    return tree, said


def _give_parameters(outcome: Outcome, wanted: dict[str, Path]) -> None:
    """Write each output parameter, a figure of the outcome, to its file."""
    for name, file in wanted.items():
        if name not in outcome.kpi:
            raise UserError(f"output {name}: this run gave no such figure; it gave {', '.join(outcome.kpi) or 'none'}")
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(outcome.kpi[name]))


def _is_another_attempt(folder: Path, executor_input: str) -> bool:
    """Whether the same task was tried in this folder before; notes this attempt.

    Each node of a distributed training notes its own attempts, in a folder that all of them may share.
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
