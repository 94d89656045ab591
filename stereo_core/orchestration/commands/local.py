"""Commands for runs on this machine: `stereo-pipelines run|runs|show|logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from stereo_core.arguments import FilePath
from stereo_core.orchestration.commands.params import compiled_file, read_params, relative
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.record import ENDED, Record, read_record


@click.command("run")
@click.argument("file", metavar="PIPELINE|FILE", type=FilePath(path_type=Path))
@click.option(
    "--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="Text, YAML or JSON; @FILE reads a file."
)
@click.option("--output-dir", "-o", required=True, type=FilePath(), help="The run folder.")
@click.option(
    "--parallel", type=click.IntRange(min=1), metavar="N", help="Steps at the same time [default: CPU cores]."
)
@click.option("--fresh", is_flag=True, help="Run every step, including those whose inputs did not change.")
@click.option("--from", "from_step", metavar="STEP", help="Run STEP and all steps that depend on it again.")
@click.option("--only", metavar="STEP", help="Run only STEP again, with the results of an earlier run as inputs.")
@click.option(
    "--runner",
    type=click.Choice(["process", "podman", "docker"]),
    default="process",
    show_default=True,
    help="Run each step as a process of this environment, or in a container of its image.",
)
def run_command(
    file: Path,
    params: tuple[str, ...],
    output_dir: str,
    parallel: int | None,
    fresh: bool,
    from_step: str | None,
    only: str | None,
    runner: str,
) -> int:
    """Run a pipeline on this machine: a pipeline of this library by its name, or a compiled one by its file.

    If you run it again in the same folder, steps whose inputs did not change are reused.
    """
    from stereo_core.orchestration.local import LocalRun
    from stereo_core.orchestration.podman import Containers
    from stereo_core.orchestration.progress import Progress, heard_or_not, summary

    if fresh + bool(from_step) + bool(only) > 1:
        raise GraphError("--fresh, --from and --only cannot be combined; give only one")
    file = compiled_file(file)
    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params)
    containers = None if runner == "process" else Containers(runner)
    with Progress() as progress:
        run = LocalRun(
            pipeline,
            arguments,
            output_dir,
            parallel=parallel,
            fresh=fresh,
            from_step=from_step,
            only=only,
            containers=containers,
            on_change=progress.show,
        )
        try:
            code = run.execute()
        except KeyboardInterrupt:
            progress.close()
            with heard_or_not():
                click.echo(f"stopped; run the same command again to continue ({relative(run.folder)})", err=True)
            _report(run.record)
            raise
    with heard_or_not():
        summary(run.record)
    _report(run.record)
    return code


def _report(run: Record) -> None:
    from stereo_core.orchestration.page import write_page
    from stereo_core.orchestration.progress import heard_or_not

    try:
        line = f"report: {relative(write_page(run))}"
    except OSError as error:
        line = f"report.html cannot be written: {(error.strerror or str(error)).lower()}"
    with heard_or_not():
        click.echo(line)


@click.command("runs")
@click.argument("folder", type=FilePath(path_type=Path, exists=True, file_okay=False), default=".")
def runs_command(folder: Path) -> int:
    """List the runs in FOLDER and in its subfolders."""
    from stereo_core.orchestration.progress import runs_table
    from stereo_core.orchestration.record import FILE

    found = [path.parent for pattern in (FILE, f"*/{FILE}") for path in folder.glob(pattern)]
    if not found:
        raise GraphError(f"{folder}: contains no runs; name a folder given to `run --output-dir`, or the one above")
    runs = []
    for path in found:
        try:
            runs.append(read_record(path))
        except GraphError as error:
            click.echo(f"stereo-pipelines: error: {error}", err=True)
    runs_table(sorted(runs, key=lambda run: run.started))
    return 0 if runs else 2


@click.command("show")
@click.argument("folder", type=FilePath(path_type=Path))
def show_command(folder: Path) -> None:
    """Show the run in FOLDER (steps, times, exit codes, artifacts, metrics) and write its report.html again."""
    from stereo_core.orchestration.progress import summary

    record = read_record(folder)
    summary(record)
    _report(record)


@click.command("logs")
@click.argument("folder", type=FilePath(path_type=Path))
@click.argument("step")
@click.option("--follow", "-f", is_flag=True, help="Keep printing while the step runs.")
def logs_command(folder: Path, step: str, follow: bool) -> None:
    """Print the log of STEP of the run in FOLDER, all attempts."""
    tasks = read_record(folder).tasks
    if step not in tasks:
        raise GraphError(f"{folder}: the run has no step {step}; known: {', '.join(tasks)}")
    log = folder / "tasks" / step / "log.txt"
    if not log.is_file() and not follow:
        state = tasks[step].state
        hint = f"; `stereo-pipelines show {folder}` says why" if state in ENDED else " yet; --follow waits for it"
        raise GraphError(f"{folder}: step {step} ({state}) has no log{hint}")
    position = 0
    while True:
        goes_on = follow and read_record(folder).tasks[step].state in ("waiting", "running")
        if log.is_file():
            with log.open("rb") as file:
                file.seek(position)
                sys.stdout.buffer.write(file.read())
                sys.stdout.buffer.flush()
                position = file.tell()
        if not goes_on:
            return
        time.sleep(0.2)
