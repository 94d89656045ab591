"""What Argo's controller and the kubelet refuse, or do otherwise than a manifest seems to say; each with its source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def spec_rules(spec: dict[str, Any]) -> Iterator[str]:
    """Of a whole Workflow."""
    # Seen on 3.7.18: the finalizer keeps a deleted Workflow alive, and its pods, which are gone, are made again.
    if "artifactGC" in spec and spec.get("podGC", {}).get("strategy") == "OnPodSuccess":
        yield "podGC OnPodSuccess with artifactGC: a Workflow deleted while it runs makes its pods again and again"


def template_rules(template: dict[str, Any]) -> Iterator[str]:
    """Of a template."""
    retry = template.get("retryStrategy")
    # Seen on 3.7.18: a hit makes a Retry node without children, and the Workflow stays Running.
    if "memoize" in template and retry:
        yield "memoize and retryStrategy on one template: a hit would never end, or hide a failure after it"
    yield from (f"retryStrategy: {problem}" for problem in _retry_rules(retry or {}, template))
    yield from _expanded(template.get("container", {}))


def _retry_rules(retry: dict[str, Any], template: dict[str, Any]) -> Iterator[str]:
    # API field Backoff.maxDuration ("the maximum amount of time allowed for a workflow in the backoff strategy"): a
    # total over all attempts, and the deadline of the one that runs.
    most, limit = retry.get("backoff", {}).get("maxDuration"), template.get("activeDeadlineSeconds")
    if most and (not limit or seconds(most) <= limit):
        yield f"maxDuration {most} is a total over all attempts, and one alone may take {limit or 'any number of'} s"


def seconds(duration: str) -> float:
    """Of a duration as Argo has it: a number, or Go's `1h30m`."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)([hms]?)", duration))


_SAFE = re.compile(
    r"sprig\.replace\('\$', '[^']+', (?:toJson\()?inputs\.parameters\['[^']+'\]"  # without any $, or with $$ for it
    r"|inputs\.parameters\['[^']+'\] == ''"  # compared, not taken
)


def _expanded(container: dict[str, Any]) -> Iterator[str]:
    # kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables: $(NAME) of the
    # container's environment is expanded in command and args.
    for text in (*container.get("command", []), *container.get("args", [])):
        for tag in re.findall(r"\{\{(.*?)\}\}", text, flags=re.DOTALL):
            if "inputs.parameters" in _SAFE.sub("", tag):
                yield f"{{{{{tag[:60]}}}}}: the kubelet would put environment variables in place of $(NAME) in it"


def argument_rules(arguments: dict[str, Any], called: dict[str, Any]) -> Iterator[str]:
    """Of what a task gives to the template that it calls."""
    for item in arguments.get("artifacts", []):
        # Seen on 3.7.18; docs (conditional-artifacts-parameters) have it in outputs alone.
        if "fromExpression" in item:
            yield f"artifacts: {item['name']}: Argo takes fromExpression in outputs only"
    if "memoize" not in called:
        return
    for item in arguments.get("parameters", []):
        said = item.get("value", "")
        if item["name"].endswith("-metadata") and "{{" not in said and '"sha256":' not in said:
            yield f"its template is memoized and can never hit: of {item['name']} no sha256 is known"
