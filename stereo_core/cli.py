"""`depth_net`: parse, load the spec, run the action, exit with its code."""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from stereo_core.arguments import FilePath
from stereo_core.cores import share_cores
from stereo_core.errors import SpecError, UserError
from stereo_core.progress import heartbeat, since
from stereo_core.values import near
from stereo_core.verbs import VERBS, Verb


class _Above0(click.FloatRange):
    """A number above 0; unlike FloatRange it refuses NaN and infinity."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class _Verbs(click.Group):
    """The verbs with a spec, and the commands below. An unknown verb fails with the nearest known name."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # before a verb's own work: click would exit with 1
            from stereo_core.run.failure import exit_code, reason

            click.echo(reason(error), err=True)
            sys.exit(exit_code(error))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, ...]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            guess = near(name, self.list_commands(ctx))
            ctx.fail(f"unknown verb {name}" + (f"; did you mean {guess}?" if guess else ""))
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*(name for name, row in VERBS.items() if row.spec), *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = VERBS.get(cmd_name)
        return _spec_command(row) if row and row.spec else super().get_command(ctx, cmd_name)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stereo-pipelines", message="%(package)s %(version)s")
def main() -> None:
    """FoundationStereo: train, evaluate, export and run stereo networks.

    Spec keys are TAO's. `depth_net default_specs VERB` prints them all.
    """


def _after_help(row: Verb) -> str:
    keys = f"Its keys:\n  depth_net default_specs {row.name} --short"
    return f"\b\nExample:\n  depth_net {row.name} {row.example}\n\n\b\n{keys}"


def _spec_command(row: Verb) -> click.Command:
    @click.command(row.name, help=row.help, epilog=_after_help(row))
    @click.option(
        "-e", "--experiment_spec_file", "spec_file", type=FilePath(path_type=Path), help="YAML file with the spec."
    )
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    def command(spec_file: Path | None, overrides: tuple[str, ...]) -> None:
        from stereo_core.run.perform import perform, set_up_logging
        from stereo_core.spec import load_spec

        set_up_logging()
        try:
            spec = load_spec(row.name, spec_file, list(overrides))
        except UserError as error:
            _refuse(error)
        sys.exit(perform(row.name, spec))

    return command


@main.command("default_specs", epilog="\b\nExample:\n  depth_net default_specs train > train.yaml")
@click.argument("verb")
@click.option("--short", is_flag=True, help="Only the most common keys.")
def default_specs(verb: str, short: bool) -> None:
    """Print every key of VERB with its default and meaning, as YAML."""
    from stereo_core.spec import schema

    _guarded(lambda: click.echo(schema.default_specs(_with_spec(verb), short), nl=False))


@main.command(epilog="\b\nExample:\n  depth_net schema train > train.schema.json")
@click.argument("verb")
def schema(verb: str) -> None:
    """Print the JSON Schema of VERB's spec."""
    from stereo_core.spec.schema import json_schema

    _guarded(lambda: click.echo(json.dumps(json_schema(_with_spec(verb)), indent=2, allow_nan=False)))


@main.command(epilog="\b\nExample:\n  depth_net predict left.png right.png --calibration calib.txt")
@click.argument("left", type=FilePath(path_type=Path))
@click.argument("right", type=FilePath(path_type=Path))
@click.option(
    "--model",
    type=FilePath(),
    metavar="TEXT",
    default="starter",
    show_default=True,
    help="A checkpoint, an engine, or starter.",
)
@click.option("--output", type=FilePath(path_type=Path), default="results/predict", show_default=True, help="Folder.")
@click.option(
    "--calibration", type=FilePath(path_type=Path), help="calib.txt, K.txt or KITTI's; adds depth and point cloud."
)
@click.option("--baseline", type=_Above0(), help="Camera baseline in metres.")
@click.option("--focal", type=_Above0(), help="Focal length in px, with --baseline.")
@click.option("--iters", type=click.IntRange(1), help="GRU iterations [default: the checkpoint's].")
@click.option("--scale", type=_Above0(4), default=1.0, help="Resize the images by this.")
def predict(left: Path, right: Path, output: Path, **options: Any) -> None:
    """Predict disparity and depth for LEFT and RIGHT: two images, or two folders with the same file names.

    Also writes a page with the results.
    """

    def work() -> None:
        share_cores()
        from stereo_core.actions.predict_pair import predict_pairs

        start = time.monotonic()
        with heartbeat(lambda: f"predicting ({since(start)} since the start)", partial(click.echo, err=True)):
            predict_pairs(left, right, output, **options, say=click.echo)

    _guarded(work)


@main.command(epilog="\b\nExample:\n  depth_net describe dn_model_latest.pth")
@click.argument("file", type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def describe(file: str, as_json: bool) -> None:
    """Describe FILE: a checkpoint (also FOLDER@best, or starter), an ONNX file or an engine."""
    from stereo_core.report.describe import as_text
    from stereo_core.report.describe import describe as describe_file
    from stereo_core.values import json_ready

    def work() -> None:
        known = json_ready(describe_file(file))
        click.echo(json.dumps(known, indent=2, ensure_ascii=False) if as_json else as_text(known))

    _guarded(work)


@main.command(epilog="\b\nExample:\n  depth_net plot results/train --out curves.png")
@click.argument("results_dir", type=FilePath(path_type=Path))
@click.option("--out", type=FilePath(path_type=Path), help="PNG file [default: RESULTS_DIR/curves.png].")
def plot(results_dir: Path, out: Path | None) -> None:
    """Plot loss, learning rate and validation of the training runs in and below RESULTS_DIR."""
    from stereo_core.report.curves import plot as draw

    def work() -> None:
        picture, runs = draw(results_dir, out)
        click.echo(f"{picture}: {', '.join(runs)}")

    _guarded(work)


@main.command(
    "convert_checkpoint",
    epilog="\b\nExample:\n  depth_net convert_checkpoint dn_model_latest.pth model_nvlabs.pth --to nvlabs",
)
@click.argument("source", metavar="IN", type=FilePath())
@click.argument("target", metavar="OUT", type=FilePath(path_type=Path))
@click.option("--to", "layout", type=click.Choice(["nvlabs", "tao"]), required=True, help="Layout to write.")
def convert_checkpoint(source: str, target: Path, layout: str) -> None:
    """Convert the checkpoint IN to another layout and write it to OUT. The weights stay the same, bit for bit."""
    from stereo_core.models.checkpoints import convert_checkpoint as convert
    from stereo_core.run.perform import set_up_logging

    set_up_logging()
    _guarded(lambda: convert(source, target, layout))
    click.echo(f"{target} written in the {layout} layout")


def _with_spec(verb: str) -> str:
    """The verb; SpecError if it is a command of this file."""
    if verb in main.commands:
        raise SpecError(f"{verb} has no spec; see `depth_net {verb} --help`")
    return verb


def _guarded(work: Callable[[], object]) -> None:
    from stereo_core.run.termination import Terminated, sigterm_raises

    try:
        with sigterm_raises():
            work()
    except UserError as error:
        _refuse(error)
    except OSError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        from stereo_core.run.failure import exit_code, is_explained, reason

        if isinstance(error, Exception) and not is_explained(error):
            traceback.print_exception(error)
        click.echo(reason(error), err=True)
        sys.exit(exit_code(error))


def _refuse(error: UserError) -> None:
    click.echo(str(error), err=True)
    sys.exit(2)


if __name__ == "__main__":
    main(prog_name="depth_net")
