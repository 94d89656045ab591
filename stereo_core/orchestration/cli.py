"""`stereo-pipelines`: compile pipelines, run them on this machine, submit them, and show runs and logs."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from stereo_core import __version__
from stereo_core.arguments import FilePath
from stereo_core.errors import UserError
from stereo_core.orchestration.commands import clusters, local
from stereo_core.orchestration.commands.argo_cache import argo_cache
from stereo_core.orchestration.commands.params import relative
from stereo_core.values import with_integers

WIDEST = 60  # characters of a default value that `list` shows
EXTRA = ("kfp", "hera")  # packages of the extra `pipelines`


class TerminationRequested(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a closed terminal. Stops the run like Ctrl-C, but with another exit code."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Entry point; exit codes: 0 done, 1 a step failed, 2 wrong input, 130 Ctrl-C, 143 SIGTERM or SIGHUP."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and "unexpected extra argument" in error.message:
            mend = "quote values that contain spaces, brackets or braces: --param 'NAME=[1, 2]'"
            error = click.UsageError(f"{error.message}; {mend}", error.ctx)
        error.show()
        code = 2
    except UserError as error:
        click.echo(f"stereo-pipelines: error: {error}", err=True)
        code = 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        click.echo(
            f"stereo-pipelines: error: {error.name} is not installed: pip install 'stereo-pipelines[pipelines]'",
            err=True,
        )
        code = 2
    except OSError as error:  # a folder that is not writable, a full disk
        click.echo(f"stereo-pipelines: error: {error}", err=True)
        code = 1
    except (KeyboardInterrupt, click.Abort) as error:  # click turns KeyboardInterrupt into Abort
        code = 143 if isinstance(error.__cause__ or error, TerminationRequested) else 130
    sys.exit(code)


def _stop(signum: int, frame: object) -> None:
    """The first signal stops the run. Later signals are ignored: stopping takes at most some seconds."""
    for other in SIGNALS:
        signal.signal(other, lambda *_: None)
    raise KeyboardInterrupt if signum == signal.SIGINT else TerminationRequested


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stereo-pipelines")
def cli() -> None:
    """Compile, run and submit pipelines: from stereo pairs to a FoundationStereo engine."""


@cli.command("list")
def list_command() -> None:
    """List pipelines and components with their inputs and default values."""
    from stereo_core.orchestration.compile import compiled_path, component_folders, description_of, pipeline_folders

    for title, folders in (("Pipelines", pipeline_folders()), ("Components", component_folders())):
        click.echo(f"{title}:")
        width = 2 + max(len(folder.name) for folder in folders)
        for folder in folders:
            path = compiled_path(folder)
            text = path.read_text()
            inputs = next(yaml.safe_load_all(text))["root"].get("inputDefinitions", {})
            click.echo(f"  {folder.name:{width}}{description_of(text)}")
            click.echo(f"  {'':{width}}{relative(path)}")
            for kind in ("artifacts", "parameters"):
                for name, item in sorted(inputs.get(kind, {}).items(), key=lambda one: _is_optional(one[1])):
                    click.echo(f"  {'':{width}}  {name}{_default(item)}")


def _is_optional(item: dict[str, Any]) -> bool:
    return bool(item.get("isOptional", "defaultValue" in item))


def _default(item: dict[str, Any]) -> str:
    """The default of an input as text; the README's table has long defaults in full."""
    if "defaultValue" not in item:
        return " (optional)" if _is_optional(item) else " (required)"
    text = json.dumps(with_integers(item["defaultValue"]))
    return f" = {text if len(text) <= WIDEST else text[:WIDEST] + '...'}"


@cli.command("compile")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a committed file differs.")
@click.option("--output-dir", "-o", "folder", type=FilePath(path_type=Path), help="Write the YAML files here instead.")
def compile_command(check: bool, folder: Path | None) -> int:
    """Regenerate component.yaml, compiled pipelines, manifests and README tables.

    \b
    STEREO_PIPELINES_IMAGE=registry.example/stereo@sha256:... stereo-pipelines compile --output-dir mine
    """
    from stereo_core.orchestration.compile import write

    changed = write(check, folder)
    for path in changed:
        click.echo(f"{'differs' if check else 'written'}: {relative(path)}")
    if check and changed:
        click.echo("these files are out of date; run `stereo-pipelines compile` and commit them", err=True)
        return 1
    if not changed:
        click.echo("everything is up to date")
    return 0


for command in (
    local.run_command,
    clusters.argo_command,
    clusters.submit_command,
    argo_cache,
    clusters.katib_command,
    local.runs_command,
    local.show_command,
    local.logs_command,
):
    cli.add_command(command)
