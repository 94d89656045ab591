"""`stereo-pipelines`: the pipelines of this library, compiled and run on this machine; the runs and their logs."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
import yaml

from stereo_core import __version__
from stereo_core.errors import UserError
from stereo_core.orchestration.argo_cache_commands import argo_cache
from stereo_core.orchestration.dag import GraphError, Pipeline, parse
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.record import Record, read_record
from stereo_core.storage import is_uri

EXTRA = ("kfp", "hera")  # what the extra `pipelines` brings


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a lost terminal: stop as on Ctrl-C, but say so in the exit code."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Entry point; exit codes: 0 done, 1 a step failed, 2 wrong input, 130 Ctrl-C, 143 SIGTERM or SIGHUP."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _stop)
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except UserError as error:
        click.echo(f"stereo-pipelines: error: {error}", err=True)
        code = 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        click.echo(
            f"stereo-pipelines: error: {error.name} is missing: pip install 'stereo-pipelines[pipelines]'", err=True
        )
        code = 2
    except (KeyboardInterrupt, click.Abort) as error:  # click turns the one into the other
        code = 143 if isinstance(error.__cause__ or error, Terminated) else 130
    sys.exit(code)


def _stop(signum, frame) -> None:
    """The first signal stops the run; those that follow do not cut the stopping short, which takes seconds at most."""
    for other in SIGNALS:
        signal.signal(other, lambda *_: None)
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stereo-pipelines")
def cli() -> None:
    """Pipelines from raw stereo pairs to a running FoundationStereo engine."""


@cli.command("list")
def list_command() -> None:
    """List pipelines and components with their parameters."""
    from stereo_core.orchestration.compile import compiled_path, component_folders, description_of, pipeline_folders

    for title, folders in (("Pipelines", pipeline_folders()), ("Components", component_folders())):
        click.echo(f"{title}:")
        width = 2 + max(len(folder.name) for folder in folders)
        for folder in folders:
            path = compiled_path(folder)
            text = path.read_text()
            inputs = next(yaml.safe_load_all(text))["root"].get("inputDefinitions", {})
            click.echo(f"  {folder.name:{width}}{description_of(text)}")
            click.echo(f"  {'':{width}}{_relative(path)}")
            for kind in ("artifacts", "parameters"):
                if inputs.get(kind):
                    click.echo(f"  {'':{width}}{kind}: {', '.join(inputs[kind])}")


@cli.command("compile")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a committed file differs.")
@click.option("--output-dir", "-o", "folder", type=click.Path(path_type=Path), help="Where the YAML files go instead.")
def compile_command(check: bool, folder: Path | None) -> int:
    """Regenerate component.yaml, compiled pipelines, manifests and README tables.

    \b
    STEREO_PIPELINES_IMAGE=registry.example/stereo@sha256:... stereo-pipelines compile --output-dir mine
    """
    from stereo_core.orchestration.compile import write

    changed = write(check, folder)
    for path in changed:
        click.echo(f"{'differs' if check else 'written'}: {_relative(path)}")
    if check and changed:
        click.echo("run `stereo-pipelines compile` and commit the files", err=True)
        return 1
    if not changed:
        click.echo("everything is up to date")
    return 0


@cli.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="Text, or YAML/JSON; @FILE reads one."
)
@click.option("--output-dir", "-o", required=True, type=click.Path(), help="The run folder.")
@click.option("--parallel", type=click.IntRange(min=1), metavar="N", help="Steps at a time [default: CPU cores].")
@click.option("--fresh", is_flag=True, help="Run every step, also those whose inputs did not change.")
@click.option("--from", "from_step", metavar="STEP", help="Run STEP and all that depend on it again.")
@click.option("--only", metavar="STEP", help="Run STEP again and nothing else, on what an earlier run made.")
@click.option(
    "--runner",
    type=click.Choice(["process", "podman", "docker"]),
    default="process",
    show_default=True,
    help="Each step as a process of this environment, or in a container of its image.",
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
    """Run a compiled pipeline on this machine.

    Started again in the same folder, it takes over every step whose inputs did not change.
    """
    from stereo_core.orchestration.local import LocalRun
    from stereo_core.orchestration.podman import Containers
    from stereo_core.orchestration.progress import Progress, heard_or_not, summary

    if fresh + bool(from_step) + bool(only) > 1:
        raise GraphError("--fresh, --from and --only exclude each other; give one")
    if is_uri(output_dir):
        raise GraphError(f"--output-dir {output_dir}: a folder of this machine is wanted")
    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params)
    steps = {"fresh": fresh, "from_step": from_step, "only": only}
    steps["containers"] = None if runner == "process" else Containers(runner)
    with Progress() as progress:
        run = LocalRun(pipeline, arguments, output_dir, parallel=parallel, **steps, on_change=progress.show)
        try:
            code = run.execute()
        except KeyboardInterrupt:
            progress.close()
            with heard_or_not():
                click.echo(
                    f"stopped; the same command goes on where it was cut off ({_relative(run.folder)})", err=True
                )
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
        told = f"report: {_relative(write_page(run))}"
    except OSError as error:
        told = f"report.html can not be written: {error.strerror.lower()}"
    with heard_or_not():
        click.echo(told)


ARGO_VERSIONS = click.Choice(["3.6", "3.7", "4.0"])


@cli.command("argo")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--artifact-repository", "bucket", required=True, metavar="URI", help="s3://BUCKET[/PREFIX].")
@click.option("--endpoint", default="", metavar="[http://]HOST[:PORT]", help="The S3 server [default: AWS].")
@click.option(
    "--secret", default="", help="Secret with accesskey and secretkey [default: the service account's rights]."
)
@click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="As for run.")
@click.option("--schedule", default="", metavar="CRON", help="A CronWorkflow, say '0 3 * * *'.")
@click.option("--service-account", default="", help="Of the pods [default: the namespace's].")
@click.option("--priority-class", default="", help="Of the steps that ask for GPUs [default: the cluster's].")
@click.option("--no-cache", is_flag=True, help="Run every step; Argo's controller needs no rights for a cache then.")
@click.option(
    "--argo-version",
    type=ARGO_VERSIONS,
    help="Of a server with the full resource definitions; 3.7 is 3.7.10 or newer [default: any with the minimal ones].",
)
def argo_command(
    file: Path,
    bucket: str,
    endpoint: str,
    secret: str,
    params: tuple[str, ...],
    schedule: str,
    service_account: str,
    priority_class: str,
    no_cache: bool,
    argo_version: str | None,
) -> None:
    """Print a compiled pipeline as manifests for Argo Workflows, without Kubeflow.

    \b
    stereo-pipelines argo pipelines/demo/compiled/demo.yaml --artifact-repository s3://artifacts/stereo \\
        --endpoint http://minio:9000 --secret minio-keys --service-account stereo-argo > workflow.yaml
    kubectl -n stereo create -f workflow.yaml
    """
    from stereo_core.orchestration.submit import check_cron

    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params, complete=bool(schedule))
    if schedule:
        check_cron("--schedule", schedule)
    options = {"schedule": schedule, "service_account": service_account, "priority_class": priority_class}
    options |= {"cache": not no_cache, "version": argo_version or ""}
    documents = _argo_documents(pipeline, arguments, (bucket, endpoint, secret), **options)
    click.echo(_as_yaml(documents), nl=False)


def _argo_documents(
    pipeline: Pipeline, arguments: dict, repository: tuple[str, str, str], **options: str | bool
) -> list[dict]:
    from stereo_core.orchestration.argo import Repository, manifests

    return manifests(pipeline, arguments, Repository.of(*repository), **options)


def _as_yaml(documents: list[dict]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)


@cli.command("submit")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", default="", metavar="URL", help="Kubeflow Pipelines' address; its token is KFP_TOKEN's.")
@click.option("--argo", is_flag=True, help="Argo Workflows, on kubectl's cluster.")
@click.option("--send", is_flag=True, help="Send it; without, what would be sent is printed.")
@click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="As for run.")
@click.option("--cron", default="", metavar="CRON", help="Again and again, say '0 3 * * *'.")
@click.option("--namespace", "-n", default="", help="[default: Kubeflow's; with --argo stereo].")
@click.option(
    "--service-account", default="", help="Of the pods [default: Kubeflow's choice; with --argo stereo-argo]."
)
@click.option("--name", default="", help="Kubeflow: the run's [default: the pipeline's].")
@click.option("--experiment", default="", help="Kubeflow: where the run belongs [default: Default].")
@click.option("--context", default="", help="Argo: of the kubeconfig [default: the current one].")
@click.option("--artifact-repository", "bucket", default="", metavar="URI", help="Argo: s3://BUCKET[/PREFIX].")
@click.option("--endpoint", default="", metavar="[http://]HOST[:PORT]", help="Argo: the S3 server [default: AWS].")
@click.option("--secret", default="", help="Argo: as for argo.")
@click.option("--priority-class", default="", help="Argo: as for argo.")
@click.option("--no-cache", is_flag=True, help="Argo: as for argo.")
@click.option("--argo-version", type=ARGO_VERSIONS, help="Argo: as for argo.")
def submit_command(
    file: Path,
    host: str,
    argo: bool,
    send: bool,
    params: tuple[str, ...],
    cron: str,
    namespace: str,
    service_account: str,
    name: str,
    experiment: str,
    context: str,
    bucket: str,
    endpoint: str,
    secret: str,
    priority_class: str,
    no_cache: bool,
    argo_version: str | None,
) -> None:
    """Run a compiled pipeline on a cluster: print what would be sent, or with --send send it.

    \b
    stereo-pipelines submit pipelines/demo/compiled/demo.yaml --host https://kubeflow.example/pipeline --send
    stereo-pipelines submit pipelines/demo/compiled/demo.yaml --argo --artifact-repository s3://artifacts/stereo --send
    """
    from stereo_core.orchestration import namespace as namespace_names
    from stereo_core.orchestration import submit

    if bool(host) == argo:
        raise submit.SubmitError("where to? give --host URL (Kubeflow Pipelines) or --argo, one of the two")
    to_kubeflow = {"--name": name, "--experiment": experiment}
    to_argo = {"--context": context, "--artifact-repository": bucket, "--endpoint": endpoint, "--secret": secret}
    to_argo |= {"--priority-class": priority_class, "--no-cache": no_cache, "--argo-version": argo_version}
    if idle := [option for option, value in (to_kubeflow if argo else to_argo).items() if value]:
        raise submit.SubmitError(f"{', '.join(idle)}: of no use with {'--argo' if argo else '--host'}")
    if argo and not bucket:
        raise submit.SubmitError("--argo needs --artifact-repository s3://BUCKET[/PREFIX]")
    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params)
    if cron:
        submit.check_cron("--cron", cron)
    if argo:
        account = service_account or namespace_names.ACCOUNT
        options = {"schedule": cron, "service_account": account, "priority_class": priority_class}
        options |= {"cache": not no_cache, "version": argo_version or ""}
        documents = _argo_documents(pipeline, arguments, (bucket, endpoint, secret), **options)
        plan, where = _as_yaml(documents), namespace or namespace_names.NAME
    else:
        submit.check_host(host)
        experiment = experiment or "Default"
        run = submit.kubeflow_run(pipeline, arguments, name=name, cron=cron, service_account=service_account)
        plan, where = submit.kubeflow_plan(file, run, host, experiment, namespace), namespace
    if not send:
        click.echo(plan, nl=False)
        click.echo("nothing was sent; --send sends it", err=True)
    elif argo:
        click.echo("\n".join(submit.send_to_argo(documents, where, context)))
    else:
        click.echo(submit.send_to_kubeflow(run, host, experiment, where))


cli.add_command(argo_cache)


@cli.command("katib")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--image", default=f"stereo-pipelines/runtime:{__version__}", show_default=True, help="Of the trials.")
@click.option("--name", default="stereo-search", show_default=True, help="Of the Experiment.")
@click.option("--spec-file", default="/data/train.yaml", show_default=True, help="FILE's path in the trials' pods.")
def katib_command(file: Path, image: str, name: str, spec_file: str) -> None:
    """Print the search that `automl` of the spec FILE describes as an Experiment for Katib."""
    from stereo_core.orchestration.katib import experiment, read_spec

    click.echo(_as_yaml([experiment(read_spec(file), name, image, spec_file)]), nl=False)


@cli.command("runs")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
def runs_command(folder: Path) -> int:
    """List the runs in FOLDER and in the folders of it."""
    from stereo_core.orchestration.progress import runs_table
    from stereo_core.orchestration.record import FILE

    found = [path.parent for pattern in (FILE, f"*/{FILE}") for path in folder.glob(pattern)]
    if not found:
        raise GraphError(f"{folder}: there is no run in it; name the folder above those given to `run --output-dir`")
    runs = []
    for path in found:
        try:
            runs.append(read_record(path))
        except GraphError as error:
            click.echo(f"stereo-pipelines: error: {error}", err=True)
    runs_table(sorted(runs, key=lambda run: run.started))
    return 0 if runs else 2


@cli.command("show")
@click.argument("folder", type=click.Path(path_type=Path))
def show_command(folder: Path) -> None:
    """Show the run in FOLDER: steps, times, exit codes, artifacts, metrics; writes its report.html anew."""
    from stereo_core.orchestration.progress import summary

    record = read_record(folder)
    summary(record)
    _report(record)


@cli.command("logs")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("step")
@click.option("--follow", "-f", is_flag=True, help="Go on as long as the step runs.")
def logs_command(folder: Path, step: str, follow: bool) -> None:
    """Print what STEP of the run in FOLDER printed, all attempts."""
    tasks = read_record(folder).tasks
    if step not in tasks:
        raise GraphError(f"{folder}: its run has no step {step}; known: {', '.join(tasks)}")
    log = folder / "tasks" / step / "log.txt"
    if not log.is_file() and not follow:
        raise GraphError(f"{folder}: step {step} ({tasks[step].state}) has printed nothing")
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


def read_params(pipeline: Pipeline, params: tuple[str, ...], complete: bool = True) -> dict[str, object]:
    """`key=value` texts -> values of the parameters' types; `@FILE` stands for the file's text.

    With `complete`, every parameter must have a value or a default.

    Raises:
        GraphError: no `=`, an unknown name, a value of another type, an unreadable file.
    """
    values = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals:
            raise GraphError(f"--param {text}: KEY=VALUE is wanted")
        if name not in pipeline.parameters:
            values[name] = value  # refused below, with the nearest name
            continue
        file = value[1:] if value.startswith("@") else ""
        try:
            value = Path(file).read_text(encoding="utf-8") if file else value
            values[name] = parse(pipeline.parameters[name], value)
        except (OSError, UnicodeDecodeError) as error:
            raise GraphError(f"--param {name}: {file}: {error}") from None
        except GraphError as error:
            hint = f"; --param {name}=@{value} reads that file" if not file and Path(value).is_file() else ""
            raise GraphError(f"{file}: {error}" if file else f"{error}{hint}") from None
    pipeline.arguments(values, complete)
    return values


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
