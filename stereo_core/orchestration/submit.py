"""Submits a compiled pipeline to Kubeflow Pipelines, or as manifests to Kubernetes for Argo.

The request is built first and can be shown; sending it is a separate call. The environment variable KFP_TOKEN holds
Kubeflow's token. Needs kfp (extra `pipelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Argument, Constant, Pipeline
from stereo_core.orchestration.servers import TIMEOUT, Kubernetes, SubmitError, answer, kfp_server_api
from stereo_core.orchestration.yaml_text import yaml_text
from stereo_core.storage import MOUNTS
from stereo_core.values import digits

TOKEN = "KFP_TOKEN"
PLURALS = {"ConfigMap": "configmaps", "WorkflowTemplate": "workflowtemplates"}
PLURALS |= {"Workflow": "workflows", "CronWorkflow": "cronworkflows"}

# ---- Kubeflow Pipelines


def kubeflow_run(
    pipeline: Pipeline, arguments: dict[str, object], *, name: str = "", cron: str = "", service_account: str = ""
) -> dict[str, Any]:
    """A run (or with `cron` a recurring run) for Kubeflow's API, without the experiment.

    Args:
        pipeline: From `load_pipeline`.
        arguments: Values of its parameters.
        name: Name of the run; empty: the pipeline's.
        cron: Five fields, minutes first (see `check_cron`).
        service_account: Service account of the steps; empty: Kubeflow's default.

    Raises:
        SubmitError: an importer reads a location that the cluster cannot reach.
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
        # Kubeflow's cron starts with seconds. The next run starts only after the previous one has ended.
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
            raise SubmitError(f"{where}: Kubeflow cannot import from {uri}; use {', '.join(MOUNTS)}")


def check_cron(option: str, cron: str) -> None:
    """Refuse a cron expression that does not have five valid fields, like Argo's. (Kubeflow's own have six.)

    Both engines accept any text, and then never start a run.
    """
    fields = cron.lower().split()
    if len(fields) != len(_CRON):
        raise SubmitError(f"{option} {cron!r}: expected five fields: {', '.join(_CRON)}")
    for (name, (low, high, names)), field in zip(_CRON.items(), fields, strict=True):
        if not all(_is_span(part, low, high, names.split()) for part in field.split(",")):
            also = f" or {names.split()[0]} to {names.split()[-1]}" if names else ""
            raise SubmitError(
                f"{option} {cron!r}: {field} is not a valid {name}; expected *, {low} to {high}{also}, a range such as "
                f"{low}-{high}, a list, or a step such as */2"
            )


_CRON = {
    "minute": (0, 59, ""),
    "hour": (0, 23, ""),
    "day": (1, 31, ""),
    "month": (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    "weekday": (0, 6, "sun mon tue wed thu fri sat"),
}
"""Field of a cron expression -> lowest and highest number, and the names of the numbers."""


def _is_span(text: str, low: int, high: int, names: list[str]) -> bool:
    """Whether a text is *, a number, a name or an ascending range, optionally with a step."""
    span, slash, step = text.partition("/")
    if slash and not digits(step):
        return False
    known = {name: number for number, name in enumerate(names, low)} | {str(n): n for n in range(low, high + 1)}
    ends = [known.get(end.lstrip("0") or end[-1:], -1) for end in span.split("-")]
    return span in ("*", "?") or (len(ends) <= 2 and -1 not in ends and ends == sorted(ends))


def check_host(host: str) -> None:
    """Refuse an invalid URL, and a URL with a password, which would be shown and logged."""
    parts = urlsplit(host)
    if parts.username or parts.password:
        raise SubmitError(f"--host: the address contains a user or password; set {TOKEN} instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SubmitError(f"--host {host}: expected http[s]://HOST[:PORT][/PATH]")


def kubeflow_plan(file: Path, run: dict[str, Any], host: str, experiment: str, namespace: str) -> str:
    """The request as text. The pipeline is shown by its file and digest."""
    kind = "recurring run" if "trigger" in run else "run"
    where = {"server": host, "experiment": experiment, "namespace": namespace}
    pipeline = f"{file} (sha256 {sha256_of(file)})"
    plan = {key: value for key, value in where.items() if value} | {kind: run | {"pipeline_spec": pipeline}}
    return yaml_text(plan)


def send_to_kubeflow(run: dict[str, Any], host: str, experiment: str, namespace: str = "") -> str:
    """Start a run, or create a recurring run; returns its URL. A missing experiment is created.

    Args:
        run: From `kubeflow_run`.
        host: The server's address (see `check_host`).
        experiment: Name of the experiment.
        namespace: Namespace in a multi-user Kubeflow; empty for a single-user one.

    Raises:
        SubmitError: the server cannot be reached, refuses, or is not Kubeflow Pipelines.
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

    def send(what: str, required: str, call: Callable[..., Any], **given: Any) -> dict[str, Any]:
        content = answer(host, what, token, lambda: call(**given, **options))
        if required and not content.get(required):
            raise SubmitError(
                f"{host}: the answer has no {required}; is this server Kubeflow Pipelines 2? Check --host"
            )
        return content

    run = run | {"experiment_id": _experiment(kfp_server_api.ExperimentServiceApi(client), send, experiment, namespace)}
    if "trigger" in run:
        create = kfp_server_api.RecurringRunServiceApi(client).recurring_run_service_create_recurring_run
        made = send("create the recurring run", "recurring_run_id", create, recurring_run=run)
        return f"{host}/#/recurringrun/details/{made['recurring_run_id']}"
    create = kfp_server_api.RunServiceApi(client).run_service_create_run
    return f"{host}/#/runs/details/{send('start the run', 'run_id', create, run=run)['run_id']}"


def _experiment(api: Any, send: Callable[..., Any], name: str, namespace: str) -> str:
    """The ID of an experiment, which is created if it is missing."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    where = {"namespace": namespace} if namespace else {}
    look = {"filter": json.dumps({"predicates": [predicate]})} | where
    found = send(f"look up experiment {name}", "", api.experiment_service_list_experiments, **look)
    if found.get("experiments"):
        return str(found["experiments"][0]["experiment_id"])
    make = {"experiment": {"display_name": name} | where}
    made = send(f"create experiment {name}", "experiment_id", api.experiment_service_create_experiment, **make)
    return str(made["experiment_id"])


# ---- Argo


def send_to_argo(documents: list[dict[str, Any]], namespace: str, context: str = "") -> list[str]:
    """Create or update the resources of a pipeline. The Workflow comes last and is always new.

    Args:
        documents: From `argo.manifests`.
        namespace: The namespace.
        context: Context of the kubeconfig; empty: the current one.

    Returns:
        `kind/name` of each resource, as the server named it.

    Raises:
        SubmitError: no kubeconfig, or the server cannot be reached or refuses.
    """
    server = Kubernetes(context)
    return [_created(server, document, namespace) for document in documents]


def _created(server: Kubernetes, document: dict[str, Any], namespace: str) -> str:
    """Create a resource with a generated name, or apply one with a fixed name."""
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
