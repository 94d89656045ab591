"""Requests to the servers of Kubeflow and Kubernetes, with clear errors.

Server and credentials for Kubernetes are those of kubectl (KUBECONFIG, or the pod's own account). Tokens are never
printed or stored. Needs kfp, which includes both clients (extra `pipelines`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from stereo_core.errors import UserError

TIMEOUT = 60  # s until a server must answer
SHOWN = 500  # characters of a server's message in an error

try:
    import kfp_server_api as kfp_server_api
    import kubernetes
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    raise UserError(f"{missing.name} is not installed: pip install 'stereo-pipelines[pipelines]'") from missing


class SubmitError(UserError):
    """A server cannot be reached or refuses, or the request is invalid."""


class Kubernetes:
    """The API server of kubectl's cluster.

    Args:
        context: Context of the kubeconfig; empty: the current one.

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
            # The last three occur for a file that is not YAML, not a mapping or not text.
            why, now = " ".join(str(error).split()), file or "unset"
            raise SubmitError(
                f"no cluster is configured: {why}; set KUBECONFIG (now {now}), or check `kubectl config view`"
            ) from None
        self._client = kubernetes.client.ApiClient()
        header = self._client.configuration.api_key.get("authorization", "")
        self._token = header.rpartition(" ")[2]  # after "Bearer ", or "bearer " in a pod

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
        """Send one request; returns the answer.

        Args:
            method: GET, POST, PATCH, PUT or DELETE.
            path: URL path.
            what: Description for errors: "create Workflow demo in stereo".
            body: JSON body.
            query: Query parameters as pairs.
            kind: Content type application/KIND.
            headers: Further headers as pairs.

        Raises:
            SubmitError: the server cannot be reached or refuses.
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
    403: "the account has no permission for this",
    404: "the server does not know this resource: check the address, the version and whether it is installed",
}


def answer(host: str, what: str, token: str, call: Callable[..., Any]) -> dict[str, Any]:
    """The JSON answer of a call of one of the two clients.

    Raises:
        SubmitError: no connection, a refusal, or an answer that is not a JSON object. The token is never included.
    """

    def shown(text: object) -> str:
        text = " ".join(str(text).split())[:SHOWN]
        return text.replace(token, "***") if token else text

    try:
        body = call().data
    except HTTPError as error:  # only the reason, without the list of attempts
        raise SubmitError(
            f"{host} cannot be reached: {shown(getattr(error, 'reason', error))}; check the address and the network"
        ) from None
    except (kfp_server_api.ApiException, kubernetes.client.ApiException) as error:
        if not error.status:  # TLS
            raise SubmitError(
                f"{host} cannot be reached: {shown(error.reason)}; check the address and the server's certificate"
            ) from None
        hint = f"; {HINTS[error.status]}" if error.status in HINTS else ""
        words = f"{error.status} {shown(error.reason)}: {shown(_message(error.body))}"
        raise SubmitError(f"{host} refused to {what}: {words}{hint}") from None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SubmitError(
            f"{host} did not answer with JSON; it may be a login page or another server: check the address"
        )
    return answer


def _message(body: bytes | str | None) -> str:
    """The message of a server: `message` or `error` of its JSON, otherwise the text."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    if not isinstance(content, dict):
        return text
    return content.get("message") or content.get("error") or text
