"""A compiled pipeline sent to a cluster: to Kubeflow Pipelines, or as manifests to Kubernetes for Argo.

What would be sent is made first and can be shown; sending it takes another call. Kubeflow's token is the environment's
KFP_TOKEN. Needs kfp (extra `pipelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Argument, Constant, Pipeline
from stereo_core.orchestration.servers import TIMEOUT, Kubernetes, SubmitError, answer, kfp_server_api
from stereo_core.storage import MOUNTS

TOKEN = "KFP_TOKEN"
PLURALS = {"ConfigMap": "configmaps", "WorkflowTemplate": "workflowtemplates"}
PLURALS |= {"Workflow": "workflows", "CronWorkflow": "cronworkflows"}

# ---- Kubeflow Pipelines


def kubeflow_run(
    pipeline: Pipeline, arguments: dict[str, object], *, name: str = "", cron: str = "", service_account: str = ""
) -> dict[str, Any]:
    """A run (with `cron` a recurring run) as Kubeflow's API takes it, apart from the experiment.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of its parameters.
        name: Of the run; empty: the pipeline's.
        cron: Five fields, minutes first (see `check_cron`).
        service_account: Of the steps; empty: Kubeflow's own choice.

    Raises:
        SubmitError: an importer would read a place that the cluster does not see.
    """
    _check_imports(pipeline, pipeline.arguments(arguments))
    spec = {"pipeline_spec": pipeline.spec, "platform_spec": pipeline.platform} if pipeline.platform else pipeline.spec
    run: dict[str, Any] = {
        "display_name": name or pipeline.name,
        "pipeline_spec": spec,
        "runtime_config": {"parameters": arguments},
    }
    if service_account:
        run["service_account"] = service_account
    if cron:
        # Kubeflow's cron has seconds first. A run that takes longer than the interval is not overtaken by the next.
        trigger = {"cron_schedule": {"cron": f"0 {cron}"}}
        run |= {"trigger": trigger, "mode": "ENABLE", "max_concurrency": 1, "no_catchup": True}
    return run


def _check_imports(pipeline: Pipeline, values: dict[str, object]) -> None:
    for task in pipeline.tasks.values():
        source = task.imported
        if not isinstance(source, Argument | Constant):
            continue
        if isinstance(source, Argument):
            where, uri = f"parameter {source.name}", values[source.name]
        else:
            where, uri = f"task {task.name}", source.value
        if not str(uri).startswith(tuple(MOUNTS)):
            raise SubmitError(f"{where}: {uri} is no place that Kubeflow imports from; {', '.join(MOUNTS)} are")


def check_cron(option: str, cron: str) -> None:
    """Refuse what is not of five fields, as Argo has them; Kubeflow's own have six."""
    if len(cron.split()) != 5:
        raise SubmitError(f"{option} {cron!r}: five fields are wanted: minute, hour, day, month, weekday")


def check_host(host: str) -> None:
    """Refuse a URL that is none, and one with a password in it, which would be shown and logged."""
    parts = urlsplit(host)
    if parts.username or parts.password:
        raise SubmitError(f"--host: no user or password in the address; set {TOKEN} instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"--host {host}: http[s]://HOST[:PORT][/PATH] is wanted")


def kubeflow_plan(file: Path, run: dict[str, Any], host: str, experiment: str, namespace: str) -> str:
    """What would be sent, for a reader: the pipeline itself by its file and digest."""
    kind = "recurring run" if "trigger" in run else "run"
    where = {"server": host, "experiment": experiment, "namespace": namespace}
    pipeline = f"{file} (sha256 {sha256_of(file)})"
    plan = {key: value for key, value in where.items() if value} | {kind: run | {"pipeline_spec": pipeline}}
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=120)


def send_to_kubeflow(run: dict[str, Any], host: str, experiment: str, namespace: str = "") -> str:
    """Start a run, or enter a recurring one, in an experiment that is made where it is missing; returns where to look.

    Args:
        run: From `kubeflow_run`.
        host: The server's address (see `check_host`).
        experiment: Its name.
        namespace: Of a Kubeflow for several users; empty: that of one for a single user.

    Raises:
        SubmitError: the server can not be reached, refuses, or is no Kubeflow Pipelines.
    """
    host = host.rstrip("/")
    token = os.environ.get(TOKEN, "")
    configuration = kfp_server_api.Configuration(host=host)
    configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
    if token:
        configuration.api_key = {"authorization": token}
        configuration.api_key_prefix = {"authorization": "Bearer"}
    client = kfp_server_api.ApiClient(configuration)
    options = {"_preload_content": False, "_request_timeout": TIMEOUT}

    def asked(what: str, wanted: str, call: Callable[..., Any], **given: Any) -> dict[str, Any]:
        said = answer(host, what, token, lambda: call(**given, **options))
        if wanted and not said.get(wanted):
            raise SubmitError(f"{host}: its answer has no {wanted}; is it a Kubeflow Pipelines 2?")
        return said

    run = run | {
        "experiment_id": _experiment(kfp_server_api.ExperimentServiceApi(client), asked, experiment, namespace)
    }
    if "trigger" in run:
        create = kfp_server_api.RecurringRunServiceApi(client).recurring_run_service_create_recurring_run
        made = asked("enter the recurring run", "recurring_run_id", create, recurring_run=run)
        return f"{host}/#/recurringrun/details/{made['recurring_run_id']}"
    create = kfp_server_api.RunServiceApi(client).run_service_create_run
    return f"{host}/#/runs/details/{asked('start the run', 'run_id', create, run=run)['run_id']}"


def _experiment(api: Any, asked: Callable[..., Any], name: str, namespace: str) -> str:
    """The id of an experiment, which is made where there is none of that name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    where = {"namespace": namespace} if namespace else {}
    look = {"filter": json.dumps({"predicates": [predicate]})} | where
    found = asked(f"look for experiment {name}", "", api.experiment_service_list_experiments, **look)
    if found.get("experiments"):
        return str(found["experiments"][0]["experiment_id"])
    make = {"experiment": {"display_name": name} | where}
    made = asked(f"make experiment {name}", "experiment_id", api.experiment_service_create_experiment, **make)
    return str(made["experiment_id"])


# ---- Argo


def send_to_argo(documents: list[dict[str, Any]], namespace: str, context: str = "") -> list[str]:
    """Create or bring up to date the resources of a pipeline, the Workflow last, which is new each time.

    Args:
        documents: From `argo.manifests`.
        namespace: Where.
        context: Of the kubeconfig; empty: the current one.

    Returns:
        `kind/name` of each, as the server named it.

    Raises:
        SubmitError: no kubeconfig, or the server can not be reached or refuses.
    """
    server = Kubernetes(context)
    return [_created(server, document, namespace) for document in documents]


def _created(server: Kubernetes, document: dict[str, Any], namespace: str) -> str:
    """Create a resource without a name of its own, apply one that has it."""
    kind, version, metadata = document["kind"], document["apiVersion"], document["metadata"]
    path = f"{'/apis' if '/' in version else '/api'}/{version}/namespaces/{namespace}/{PLURALS[kind]}"
    name = metadata.get("name", "")
    what = f"create {kind} {name or metadata['generateName']} in {namespace}"
    if name:
        query = [("fieldManager", "stereo-pipelines"), ("force", "true")]
        made = server.call("PATCH", f"{path}/{name}", what, document, query=query, kind="apply-patch+yaml")
    else:
        made = server.call("POST", path, what, document)
    return f"{kind.lower()}/{made.get('metadata', {}).get('name', name)}"
