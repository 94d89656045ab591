"""Commands for clusters: `stereo-pipelines argo|submit|katib`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stereo_core import __version__
from stereo_core.arguments import FilePath
from stereo_core.orchestration import preflight
from stereo_core.orchestration.commands.params import compiled_file, read_params
from stereo_core.orchestration.dag import Pipeline
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.names import EXPERIMENT, IMAGE, NAMESPACE, RESOURCE
from stereo_core.orchestration.yaml_text import yaml_text

ARGO_VERSIONS = click.Choice(["3.6", "3.7", "4.0"])


@click.command("argo")
@click.argument("file", metavar="PIPELINE|FILE", type=FilePath(path_type=Path))
@click.option("--artifact-repository", "bucket", required=True, metavar="URI", help="s3://BUCKET[/PREFIX].")
@click.option("--endpoint", default="", metavar="[http://]HOST[:PORT]", help="S3 server [default: AWS].")
@click.option(
    "--secret",
    type=RESOURCE,
    default="",
    help="Secret with accesskey and secretkey [default: the service account's permissions].",
)
@click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="See `stereo-pipelines run --help`.")
@click.option("--schedule", default="", metavar="CRON", help="Make a CronWorkflow, e.g. '0 3 * * *'.")
@click.option(
    "--service-account", type=RESOURCE, default="", help="Service account of the pods [default: the namespace's]."
)
@click.option(
    "--priority-class",
    type=RESOURCE,
    default="",
    help="Priority class of steps that request GPUs [default: the cluster's].",
)
@click.option("--no-cache", is_flag=True, help="Use no cache; then Argo's controller needs no permissions for one.")
@click.option(
    "--argo-version",
    type=ARGO_VERSIONS,
    help="For a server with full resource definitions; 3.7 means 3.7.10 or newer [default: any with minimal ones].",
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
    stereo-pipelines argo demo --artifact-repository s3://artifacts/stereo \\
        --endpoint http://minio:9000 --secret minio-keys --service-account stereo-argo > workflow.yaml
    kubectl -n stereo create -f workflow.yaml
    """
    from stereo_core.orchestration.submit import check_cron

    file = compiled_file(file)
    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params, complete=bool(schedule))
    preflight.check(pipeline, arguments)
    if schedule:
        check_cron("--schedule", schedule)
    options: dict[str, Any] = {
        "schedule": schedule,
        "service_account": service_account,
        "priority_class": priority_class,
    }
    options |= {"cache": not no_cache, "version": argo_version or ""}
    documents = _argo_documents(pipeline, arguments, (bucket, endpoint, secret), **options)
    if missing := [p.name for p in pipeline.parameters.values() if p.required and p.name not in arguments]:
        text = f"Without a value: {', '.join(missing)}; give it with --param, or with argo submit --parameter"
        click.echo(text, err=True)
    click.echo(yaml_text(*documents), nl=False)


def _argo_documents(
    pipeline: Pipeline, arguments: dict[str, Any], repository: tuple[str, str, str], **options: Any
) -> list[dict[str, Any]]:
    from stereo_core.orchestration.argo import Repository, manifests

    return manifests(pipeline, arguments, Repository.of(*repository), **options)


@click.command("submit")
@click.argument("file", metavar="PIPELINE|FILE", type=FilePath(path_type=Path))
@click.option("--host", default="", metavar="URL", help="URL of Kubeflow Pipelines; KFP_TOKEN holds the token.")
@click.option("--argo", is_flag=True, help="Submit to Argo Workflows on kubectl's cluster.")
@click.option("--send", is_flag=True, help="Send it; without it the request is only printed.")
@click.option("--param", "-p", "params", multiple=True, metavar="KEY=VALUE", help="See `stereo-pipelines run --help`.")
@click.option("--cron", default="", metavar="CRON", help="Run on a schedule, e.g. '0 3 * * *'.")
@click.option("--namespace", "-n", type=NAMESPACE, default="", help="[default: Kubeflow's; with --argo: stereo].")
@click.option(
    "--service-account",
    type=RESOURCE,
    default="",
    help="Of the pods [default: Kubeflow's choice; with --argo: stereo-argo].",
)
@click.option("--name", default="", help="Kubeflow: name of the run [default: the pipeline's].")
@click.option("--experiment", default="", help="Kubeflow: experiment of the run [default: Default].")
@click.option("--context", default="", help="Argo: context of the kubeconfig [default: the current one].")
@click.option("--artifact-repository", "bucket", default="", metavar="URI", help="Argo: s3://BUCKET[/PREFIX].")
@click.option("--endpoint", default="", metavar="[http://]HOST[:PORT]", help="Argo: S3 server [default: AWS].")
@click.option("--secret", type=RESOURCE, default="", help="Argo: see `stereo-pipelines argo --help`.")
@click.option("--priority-class", type=RESOURCE, default="", help="Argo: see `stereo-pipelines argo --help`.")
@click.option("--no-cache", is_flag=True, help="Argo: see `stereo-pipelines argo --help`.")
@click.option("--argo-version", type=ARGO_VERSIONS, help="Argo: see `stereo-pipelines argo --help`.")
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
    """Submit a compiled pipeline to a cluster. Without --send the request is only printed.

    \b
    stereo-pipelines submit demo --host https://kubeflow.example/pipeline --send
    stereo-pipelines submit demo --argo --artifact-repository s3://artifacts/stereo --send
    """
    from stereo_core.orchestration import namespace as namespace_names
    from stereo_core.orchestration import submit
    from stereo_core.orchestration.servers import SubmitError

    if bool(host) == argo:
        raise SubmitError("give --host URL (Kubeflow Pipelines) or --argo (Argo Workflows), but not both")
    to_kubeflow: dict[str, object] = {"--name": name, "--experiment": experiment}
    to_argo: dict[str, object] = {
        "--context": context,
        "--artifact-repository": bucket,
        "--endpoint": endpoint,
        "--secret": secret,
    }
    to_argo |= {"--priority-class": priority_class, "--no-cache": no_cache, "--argo-version": argo_version}
    if idle := [option for option, value in (to_kubeflow if argo else to_argo).items() if value]:
        raise SubmitError(f"{', '.join(idle)}: has no effect with {'--argo' if argo else '--host'}; leave it out")
    if argo and not bucket:
        raise SubmitError("--argo needs --artifact-repository s3://BUCKET[/PREFIX]")
    file = compiled_file(file)
    pipeline = load_pipeline(file)
    arguments = read_params(pipeline, params)
    preflight.check(pipeline, arguments)
    if cron:
        submit.check_cron("--cron", cron)
    if argo:
        account = service_account or namespace_names.ACCOUNT
        options: dict[str, Any] = {"schedule": cron, "service_account": account, "priority_class": priority_class}
        options |= {"cache": not no_cache, "version": argo_version or ""}
        documents = _argo_documents(pipeline, arguments, (bucket, endpoint, secret), **options)
        plan, where = yaml_text(*documents), namespace or namespace_names.NAME
    else:
        submit.check_host(host)
        experiment = experiment or "Default"
        run = submit.kubeflow_run(pipeline, arguments, name=name, cron=cron, service_account=service_account)
        plan, where = submit.kubeflow_plan(file, run, host, experiment, namespace), namespace
    if not send:
        click.echo(plan, nl=False)
        click.echo("nothing was sent; add --send to send it", err=True)
    elif argo:
        click.echo("\n".join(submit.send_to_argo(documents, where, context)))
    else:
        click.echo(submit.send_to_kubeflow(run, host, experiment, where))


@click.command("katib")
@click.argument("file", type=FilePath(path_type=Path))
@click.option(
    "--image",
    type=IMAGE,
    default=f"stereo-pipelines/runtime:{__version__}",
    show_default=True,
    help="The trials' image.",
)
@click.option("--name", type=EXPERIMENT, default="stereo-search", show_default=True, help="Name of the Experiment.")
@click.option("--spec-file", default="/data/train.yaml", show_default=True, help="Path of FILE in the trials' pods.")
def katib_command(file: Path, image: str, name: str, spec_file: str) -> None:
    """Print a Katib Experiment for the search in the section `automl` of the spec FILE."""
    from stereo_core.orchestration.katib import experiment, read_spec

    click.echo(yaml_text(experiment(read_spec(file), name, image, spec_file)), nl=False)
