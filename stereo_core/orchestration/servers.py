"""Talking to Kubeflow's and Kubernetes' servers: who they are, what they answered, and how a refusal is told.

Kubernetes' server and credentials are those of kubectl (KUBECONFIG, or the pod's own account). No token is printed or
stored. Needs kfp, which brings both clients (extra `pipelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from stereo_core.errors import UserError

TIMEOUT = 60  # s for an answer
SHOWN = 500  # characters of a server's own words

try:
    import kfp_server_api as kfp_server_api
    import kubernetes
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    raise UserError(f"{missing.name} is missing: pip install 'stereo-pipelines[pipelines]'") from missing


class SubmitError(UserError):
    """A server that can not be reached or refuses, or something that can not be sent to it."""


class Kubernetes:
    """The API server of kubectl's cluster.

    Args:
        context: Of the kubeconfig; empty: the current one.

    Raises:
        SubmitError: no kubeconfig.
    """

    def __init__(self, context: str = ""):
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
        self._client = kubernetes.client.ApiClient()
        said = self._client.configuration.api_key.get("authorization", "")
        self._token = said.rpartition(" ")[2]  # "Bearer ", in a pod "bearer "

    def call(
        self,
        method: str,
        path: str,
        what: str,
        body: dict[str, Any] | None = None,
        *,
        query: Iterable[tuple[str, Any]] = (),
        kind: str = "json",
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> dict[str, Any]:
        """The answer to one call.

        Args:
            method: GET, POST, PATCH, PUT or DELETE.
            path: Below the server.
            what: For the error: "create Workflow demo in stereo".
            body: What is sent.
            query: Pairs.
            kind: Of the body, as application/KIND.
            headers: Further ones.

        Raises:
            SubmitError: the server can not be reached or refuses.
        """
        call = {
            "query_params": list(query),
            "header_params": {"Content-Type": f"application/{kind}", "Accept": "application/json"} | dict(headers),
            "body": body,
            "auth_settings": ["BearerToken"],
            "_preload_content": False,
            "_request_timeout": TIMEOUT,
        }
        host = self._client.configuration.host
        return answer(host, what, self._token, lambda: self._client.call_api(path, method, **call)[0])


HINTS = {
    401: "the credentials are missing or no longer valid",
    403: "the account may not do this",
    404: "the server does not know this resource: another version, a wrong path, or it is not installed",
}


def answer(host: str, what: str, token: str, call: Callable[..., Any]) -> dict[str, Any]:
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
