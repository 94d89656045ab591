"""Differences between Argo's versions in their resource definitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VERSIONS = ("3.6", "3.7", "4.0")  # 3.7 means 3.7.10 or newer
LONG_ARGUMENTS = ("3.7", "4.0")  # these versions pass an argument above 128 KiB as @FILE


def fit(documents: list[dict[str, Any]], version: str) -> None:
    """Change manifests in place, so that a server with this version's full resource definitions accepts them.

    Without a version the manifests suit any server with the minimal definitions, which do not check templates.
    """
    for template in _templates(documents):
        if (
            version == "3.7" and "memoize" in template
        ):  # 3.7 requires a key in the ConfigMapKeySelector, but does not use it
            template["memoize"]["cache"]["configMap"]["key"] = "unused"
        if version == "3.6":
            template.get("retryStrategy", {}).get("backoff", {}).pop("cap", None)


def _templates(documents: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document["kind"] == "WorkflowTemplate":
            yield from document["spec"]["templates"]
