"""Where Argo's versions differ in what their resource definitions take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VERSIONS = ("3.6", "3.7", "4.0")  # 3.7 is 3.7.10 or newer
LONG_ARGUMENTS = ("3.7", "4.0")  # these pass an argument above 128 KiB as @FILE


def fit(documents: list[dict[str, Any]], version: str) -> None:
    """Change manifests so that a server with this version's full definitions takes them; in place.

    Without a version they are for any server with the minimal definitions, which look at nothing inside a template.
    """
    for template in _templates(documents):
        if version == "3.7" and "memoize" in template:  # a ConfigMapKeySelector there, whose key is required; unused
            template["memoize"]["cache"]["configMap"]["key"] = "unused"
        if version == "3.6":
            template.get("retryStrategy", {}).get("backoff", {}).pop("cap", None)


def _templates(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document["kind"] == "WorkflowTemplate":
            yield from document["spec"]["templates"]
