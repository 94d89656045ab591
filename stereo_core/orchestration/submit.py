"""A compiled pipeline sent to a cluster: to Kubeflow Pipelines, or as manifests to Kubernetes for Argo.

What would be sent is made first and can be shown; sending it takes another call. Kubernetes' server and credentials are
those of kubectl (KUBECONFIG, or the pod's own account); Kubeflow's token is the environment's KFP_TOKEN. No token is
printed or stored. Needs kfp, which brings both clients (extra `pipelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from stereo_core.errors import UserError
from stereo_core.files import sha256_of
from stereo_core.orchestration.dag import Argument, Constant, Pipeline
from stereo_core.storage import MOUNTS

TOKEN = "KFP_TOKEN"
TIMEOUT = 60  # s for an answer
SHOWN = 500  # characters of a server's own words
PLURALS = {"ConfigMap": "configmaps", "WorkflowTemplate": "workflowtemplates"}
PLURALS |= {"Workflow": "workflows", "CronWorkflow": "cronworkflows"}

try:
    import kfp_server_api
    import kubernetes
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    raise UserError(f"{missing.name} is missing: pip install 'stereo-pipelines[pipelines]'") from missing


class SubmitError(UserError):
    """A server that can not be reached or refuses, or something that can not be sent to it."""


# ---- Kubeflow Pipelines


def kubeflow_run(
    pipeline: Pipeline, arguments: dict[str, object], *, name: str = "", cron: str = "", service_account: str = ""
) -> dict:
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
    run = {"display_name": name or pipeline.name, "pipeline_spec": spec, "runtime_config": {"parameters": arguments}}
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
        named = isinstance(source, Argument)
        where, uri = (f"parameter {source.name}", values[source.name]) if named else (f"task {task.name}", source.value)
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


def kubeflow_plan(file: Path, run: dict, host: str, experiment: str, namespace: str) -> str:
    """What would be sent, for a reader: the pipeline itself by its file and digest."""
    kind = "recurring run" if "trigger" in run else "run"
    where = {"server": host, "experiment": experiment, "namespace": namespace}
    pipeline = f"{file} (sha256 {sha256_of(file)})"
    plan = {key: value for key, value in where.items() if value} | {kind: run | {"pipeline_spec": pipeline}}
    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=120)


def send_to_kubeflow(run: dict, host: str, experiment: str, namespace: str = "") -> str:
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

    def asked(what: str, wanted: str, call: Callable, **given) -> dict:
        answer = _answer(host, what, token, lambda: call(**given, **options))
        if wanted and not answer.get(wanted):
            raise SubmitError(f"{host}: its answer has no {wanted}; is it a Kubeflow Pipelines 2?")
        return answer

    run = run | {
        "experiment_id": _experiment(kfp_server_api.ExperimentServiceApi(client), asked, experiment, namespace)
    }
    if "trigger" in run:
        create = kfp_server_api.RecurringRunServiceApi(client).recurring_run_service_create_recurring_run
        made = asked("enter the recurring run", "recurring_run_id", create, recurring_run=run)
        return f"{host}/#/recurringrun/details/{made['recurring_run_id']}"
    create = kfp_server_api.RunServiceApi(client).run_service_create_run
    return f"{host}/#/runs/details/{asked('start the run', 'run_id', create, run=run)['run_id']}"


def _experiment(api, asked: Callable, name: str, namespace: str) -> str:
    """The id of an experiment, which is made where there is none of that name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    where = {"namespace": namespace} if namespace else {}
    look = {"filter": json.dumps({"predicates": [predicate]})} | where
    found = asked(f"look for experiment {name}", "", api.experiment_service_list_experiments, **look)
    if found.get("experiments"):
        return found["experiments"][0]["experiment_id"]
    make = {"experiment": {"display_name": name} | where}
    made = asked(f"make experiment {name}", "experiment_id", api.experiment_service_create_experiment, **make)
    return made["experiment_id"]


# ---- Argo


def send_to_argo(documents: list[dict], namespace: str, context: str = "") -> list[str]:
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
    file = os.environ.get("KUBECONFIG")
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not (file or context):
            kubernetes.config.load_incluster_config()
        else:
            kubernetes.config.load_kube_config(file, context or None)
    except (kubernetes.config.ConfigException, OSError, yaml.YAMLError, TypeError, ValueError) as error:
        # The last three: what is no YAML, no mapping, no text.
        why, now = " ".join(str(error).split()), file or "unset"
        raise SubmitError(
            f"no cluster to talk to: {why}; set KUBECONFIG (now {now}), or look at `kubectl config view`"
        ) from None
    server = kubernetes.client.ApiClient()
    token = server.configuration.api_key.get("authorization", "").rpartition(" ")[2]  # "Bearer ", in a pod "bearer "
    return [_created(server, document, namespace, token) for document in documents]


def _created(server, document: dict, namespace: str, token: str) -> str:
    """Create a resource without a name of its own, apply one that has it."""
    kind, version = document["kind"], document["apiVersion"]
    path = f"{'/apis' if '/' in version else '/api'}/{version}/namespaces/{namespace}/{PLURALS[kind]}"
    name = document["metadata"].get("name", "")
    method, query, headers = "POST", [], {"Content-Type": "application/json"}
    if name:
        method, path, headers = "PATCH", f"{path}/{name}", {"Content-Type": "application/apply-patch+yaml"}
        query = [("fieldManager", "stereo-pipelines"), ("force", "true")]
    call = {
        "query_params": query,
        "header_params": headers | {"Accept": "application/json"},
        "body": document,
        "auth_settings": ["BearerToken"],
        "_preload_content": False,
        "_request_timeout": TIMEOUT,
    }
    host, what = (
        server.configuration.host,
        f"create {kind} {name or document['metadata']['generateName']} in {namespace}",
    )
    made = _answer(host, what, token, lambda: server.call_api(path, method, **call)[0])
    return f"{kind.lower()}/{made.get('metadata', {}).get('name', name)}"


# ---- both

HINTS = {
    401: "the credentials are missing or no longer valid",
    403: "the account may not do this",
    404: "the server does not know this resource: another version, a wrong path, or it is not installed",
}


def _answer(host: str, what: str, token: str, call: Callable) -> dict:
    """The JSON that a call of one of the two clients brings.

    Raises:
        SubmitError: no connection, a refusal, or an answer that is no JSON object; never with the token in it.
    """

    def said(text: object) -> str:
        text = " ".join(str(text).split())[:SHOWN]
        return text.replace(token, "***") if token else text

    try:
        body = call().data
    except HTTPError as error:  # the reason, where there is one, without the attempts around it
        raise SubmitError(f"{host} can not be reached: {said(getattr(error, 'reason', error))}") from None
    except (kfp_server_api.ApiException, kubernetes.client.ApiException) as error:
        if not error.status:  # TLS
            raise SubmitError(f"{host} can not be reached: {said(error.reason)}") from None
        hint = f"; {HINTS[error.status]}" if error.status in HINTS else ""
        words = f"{error.status} {said(error.reason)}: {said(_words(error.body))}"
        raise SubmitError(f"{host} refused to {what}: {words}{hint}") from None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SubmitError(f"{host} answered with something that is no JSON; a login page, or another kind of server?")
    return answer


def _words(body: bytes | str | None) -> str:
    """A server's own words: `message` or `error` of its JSON, else the text."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        told = json.loads(text)
    except ValueError:
        return text
    if not isinstance(told, dict):
        return text
    return told.get("message") or told.get("error") or text
