"""Decides which tasks a run executes, and what it reuses from an earlier run in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stereo_core.orchestration.dag import GraphError, Pipeline, Task
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.local.reuse import is_outdated, is_unchanged
from stereo_core.orchestration.record import FILE, Record, TaskRun, read_record
from stereo_core.values import near


@dataclass(frozen=True)
class Plan:
    """`scope`: the tasks of this run; `again`: those that run even if unchanged; `fresh`: run in empty folders."""

    scope: frozenset[str]
    again: frozenset[str]
    fresh: bool


def planned(pipeline: Pipeline, fresh: bool, from_step: str | None, only: str | None) -> Plan:
    """Raises:
    GraphError: an unknown step.
    """
    for option, step in (("--from", from_step), ("--only", only)):
        if step is not None and step not in pipeline.tasks:
            meant = near(step, pipeline.tasks)
            hint = f"did you mean {meant}?" if meant else f"known: {', '.join(pipeline.tasks)}"
            raise GraphError(f"{option}: pipeline {pipeline.name} has no step {step}; {hint}")
    every = frozenset(pipeline.tasks)
    if fresh:
        again = every
    elif from_step:
        again = _with_followers(pipeline, from_step)
    else:
        again = frozenset({only} if only else ())
    return Plan(frozenset({only}) if only else every, again, fresh)


def _with_followers(pipeline: Pipeline, step: str) -> frozenset[str]:
    again = {step}
    for name, task in pipeline.tasks.items():  # sorted: each task comes after the tasks that it needs
        again |= {name} if (task.after | task.behind) & again else set()
    return frozenset(again)


def run_before(folder: Path, pipeline: Pipeline) -> Record:
    """The earlier run in the folder; an empty record if there is none.

    Raises:
        GraphError: it belongs to another pipeline, or cannot be read.
    """
    if not (folder / FILE).is_file():
        return Record(folder, pipeline.name, {})
    before = read_record(folder)
    if before.pipeline != pipeline.name:
        raise GraphError(f"{folder} holds a run of another pipeline, {before.pipeline}; choose another folder")
    return before


def waiting(task: Task, pipeline: Pipeline, before: TaskRun) -> TaskRun:
    """The record of a waiting task. It keeps the contents of its folder, because this run may end before the task."""
    return TaskRun(
        title=task.title,
        after=sorted(pipeline.comes_after(task)),
        condition=" and ".join(test.text for test in task.when),
        key=before.key,
        made=before.made,
        parameters=before.parameters,
        artifacts=before.artifacts,
    )


def keep_the_others(record: Record, before: Record, only: Task) -> None:
    """Copy the records of all other tasks from the earlier run.

    Raises:
        GraphError: a result that the task needs does not exist.
    """
    for name in record.tasks.keys() - {only.name}:
        run = record.tasks[name] = before.tasks.get(name, record.tasks[name])
        if run.state in ("waiting", "stopped"):
            run.state = "reused" if run.made else "stopped"  # the earlier run was interrupted before this task
    lacking = sorted(name for name in only.after if not record.tasks[name].lets_on())
    if lacking:
        raise GraphError(
            f"--only {only.name}: it needs the results of {', '.join(lacking)}, which {record.folder} does not have;"
            " run the pipeline without --only first"
        )


def check_kept(pipeline: Pipeline, record: Record, scope: frozenset[str], digests: Digests) -> None:
    """Check the kept results that tasks of `scope` need: unchanged, and made with the present parameters and inputs.

    Raises:
        GraphError: names the tasks with other results.
    """
    needed = set().union(*(pipeline.tasks[name].after for name in scope)) - scope
    changed = sorted(name for name in needed if not is_unchanged(record.tasks[name], record.folder, digests))
    if changed:
        raise GraphError(
            f"--only: the results of {', '.join(changed)} have changed since the step wrote them; run without --only"
        )
    needed = all_before(scope, pipeline) - scope
    outdated = sorted(name for name in needed if is_outdated(pipeline.tasks[name], record, digests))
    if outdated:
        raise GraphError(
            f"--only: {', '.join(outdated)} ran with other parameters or inputs than now;"
            " give the same ones, or run without --only"
        )


def all_before(names: set[str] | frozenset[str], pipeline: Pipeline) -> set[str]:
    """Tasks that these need, directly or not."""
    needed = set().union(*(pipeline.tasks[name].after for name in names))
    return needed | all_before(needed, pipeline) if needed else needed
