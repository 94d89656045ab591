"""The values of a task's inputs at this point of the run."""

from __future__ import annotations

from typing import Any

from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Constant,
    Filled,
    FinalStatus,
    GraphError,
    OneOf,
    Output,
    Source,
    Task,
    filled,
    outputs_in,
    typed,
)
from stereo_core.orchestration.record import DONE, Made, Record


def parameters_of(task: Task, record: Record) -> dict[str, object]:
    """The task's parameters. A default replaces the output of a task that did not succeed.

    Raises:
        GraphError: a required output is missing, or a value has the wrong type.
    """
    declared = task.component.parameters
    values = {p.name: p.default for p in declared.values() if p.default is not None}
    for name, source in task.parameters.items():
        if is_there(source, record) or declared[name].required:
            values[name] = value_of(source, record)
    return {name: typed(declared[name], value) for name, value in values.items()}


def artifacts_of(task: Task, record: Record) -> dict[str, list[Made]]:
    """The task's input artifacts by port; ports without an artifact are left out."""
    return {port: _made(source, record) for port, source in task.artifacts.items() if is_there(source, record)}


def is_there(source: Source, record: Record) -> bool:
    """Whether the outputs of a source exist."""
    there = [record.tasks[output.task].state in DONE for output in outputs_in(source)]
    return isinstance(source, Collected) or (any(there) if isinstance(source, OneOf) else all(there))


def value_of(source: Source, record: Record) -> object:
    """The value of a parameter.

    Raises:
        GraphError: the producing task did not write it.
    """
    match source:
        case Constant(value=value):
            return value
        case Argument(name=name):
            return record.arguments[name]
        case Filled(value=value, inputs=inputs):
            return filled(value, {name: value_of(inner, record) for name, inner in inputs.items()})
        case OneOf(options=options):
            return value_of(next((option for option in options if is_there(option, record)), options[0]), record)
        case Collected(rounds=rounds):
            return [value_of(inner, record) for inner in rounds if is_there(inner, record)]
        case FinalStatus():
            return _final_status(source, record)
    return _output_parameter(source, record)


def _output_parameter(source: Output, record: Record) -> object:
    run = record.tasks[source.task]
    if source.key not in run.parameters:
        raise GraphError(
            f"task {source.task} ({run.state}) wrote no output parameter {source.key}, which this task needs; "
            "see its log"
        )
    return run.parameters[source.key]


def _made(source: Source, record: Record) -> list[Made]:
    match source:
        case OneOf(options=options):
            return _made(next(option for option in options if is_there(option, record)), record)
        case Collected(rounds=rounds):
            return [made for inner in rounds if is_there(inner, record) for made in _made(inner, record)]
        case Output(task=task, key=key):
            return [record.tasks[task].artifacts[key]]
    raise TypeError(f"{source!r} is no artifact")


def _final_status(source: FinalStatus, record: Record) -> dict[str, Any]:
    """KFP's PipelineTaskFinalStatus. A cancelled run is always reported as cancelled."""
    bad = {name: run for name in source.tasks if (run := record.tasks[name]).state in ("failed", "stopped")}
    state = "CANCELLED" if record.cancelled else "FAILED" if bad else "SUCCEEDED"
    code = max((run.exit_code or 0 for run in bad.values()), default=0)
    reasons = [f"{name} {run.state}" + (f": {run.message}" if run.message else "") for name, run in bad.items()]
    return {
        "state": state,
        "pipelineJobResourceName": f"{record.pipeline} in {record.folder}",
        "pipelineTaskName": source.group,
        "error": {"code": code, "message": "; ".join(reasons)},
    }
