"""Rules of Argo's controller and the kubelet: manifests they refuse or treat unexpectedly; each with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def spec_rules(spec: dict[str, Any]) -> Iterator[str]:
    """Rules for a whole Workflow."""
    # Seen on 3.7.18: the finalizer keeps a deleted Workflow alive, and the controller creates its removed pods again.
    if "artifactGC" in spec and spec.get("podGC", {}).get("strategy") == "OnPodSuccess":
        yield "podGC OnPodSuccess with artifactGC: if the Workflow is deleted while it runs, its pods are created again"


def template_rules(template: dict[str, Any]) -> Iterator[str]:
    """Rules for a template."""
    retry = template.get("retryStrategy")
    # Seen on 3.7.18: a hit makes a Retry node without children, and the Workflow stays Running.
    if "memoize" in template and retry:
        yield "memoize and retryStrategy on the same template: a cache hit would never end, or hide a later failure"
    yield from (f"retryStrategy: {problem}" for problem in _retry_rules(retry or {}, template))
    yield from _expanded(template.get("container", {}))


def _retry_rules(retry: dict[str, Any], template: dict[str, Any]) -> Iterator[str]:
    # API field Backoff.maxDuration ("the maximum amount of time allowed for a workflow in the backoff strategy"): a
    # total over all attempts, and the deadline of the one that runs.
    most, limit = retry.get("backoff", {}).get("maxDuration"), template.get("activeDeadlineSeconds")
    if most and (not limit or seconds(most) <= limit):
        yield f"maxDuration {most} limits all attempts together, but a single one may take {limit or 'any number of'} s"


def seconds(duration: str) -> float:
    """Seconds of a duration in Argo's form: a number, or Go's `1h30m`."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([hms]?)", duration))


_SAFE = re.compile(
    r"sprig\.replace\('\$', '[^']+', (?:toJson\()?inputs\.parameters\['[^']+'\]"  # with each $ removed or doubled
    r"|inputs\.parameters\['[^']+'\] == ''"  # only compared, not inserted
)


def _expanded(container: dict[str, Any]) -> Iterator[str]:
    # kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables: $(NAME) of the
    # container's environment is expanded in command and args.
    for text in (*container.get("command", []), *container.get("args", [])):
        for tag in re.findall(r"\{\{(.*?)\}\}", text, flags=re.DOTALL):
            if "inputs.parameters" in _SAFE.sub("", tag):
                yield f"{{{{{tag[:60]}}}}}: the kubelet would replace $(NAME) in it by environment variables"


def argument_rules(arguments: dict[str, Any], called: dict[str, Any]) -> Iterator[str]:
    """Rules for the arguments of a task."""
    for item in arguments.get("artifacts", []):
        # Seen on 3.7.18; the docs (conditional-artifacts-parameters) show it only in outputs.
        if "fromExpression" in item:
            yield f"artifacts: {item['name']}: Argo supports fromExpression only in outputs"
    if "memoize" not in called:
        return
    for item in arguments.get("parameters", []):
        value = item.get("value", "")
        if item["name"].endswith("-metadata") and "{{" not in value and '"sha256":' not in value:
            yield f"its template is memoized, but the cache can never hit: {item['name']} has no sha256"
