"""Lists and removes the cache entries of steps that Argo's controller keeps in ConfigMaps of its own namespace.

The controller removes entries only if CACHE_GC_PERIOD and CACHE_GC_AFTER_NOT_HIT_DURATION are set in its environment.
A ConfigMap holds 1 MiB. Once it is full, its step ends as an Error, because the result cannot be stored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from stereo_core.orchestration.servers import Kubernetes, SubmitError

NAMESPACE = "argo"  # the controller's namespace in a default installation
LABEL = "workflows.argoproj.io/configmap-type=Cache"  # argo-workflows.readthedocs.io/en/latest/memoization
SUFFIX = "-cache"  # ours are named PIPELINE-STEP-cache, like many others
KEY = re.compile(r"[a-z0-9-]+-[0-9a-f]{64}")  # keys of our entries: NAMESPACE-SHA256 (argo/cache.py)
ROOM = 1024 * 1024  # bytes that a ConfigMap can hold


@dataclass(frozen=True)
class CacheMap:
    """One ConfigMap of the cache.

    Args:
        name: PIPELINE-STEP-cache.
        entries: Key -> creation time; None if the entry has none.
        size: Size in bytes.
    """

    name: str
    entries: dict[str, datetime | None]
    size: int

    def older_than(self, days: float, now: datetime) -> list[str]:
        """Keys of the entries older than `days`; entries without a time count as older."""
        return [key for key, made in self.entries.items() if made is None or now - made > timedelta(days=days)]


def cache_maps(server: Kubernetes, namespace: str) -> list[CacheMap]:
    """The cache's ConfigMaps of this library's steps, the fullest first.

    Raises:
        SubmitError: the server cannot be reached or refuses.
    """
    what = f"list the cache's ConfigMaps in {namespace}"
    found = server.call("GET", _path(namespace), what, query=[("labelSelector", LABEL)]).get("items", [])
    maps = [_read(item) for item in found if _is_ours(item)]
    return sorted(maps, key=lambda one: -one.size)


def chosen(maps: list[CacheMap], names: tuple[str, ...]) -> list[CacheMap]:
    """The ConfigMaps with these names. The name of a pipeline selects those of all its steps; no name selects all.

    Raises:
        SubmitError: no ConfigMap has the name.
    """
    for name in names:
        if not any(_is_of(one, name) for one in maps):
            there = ", ".join(one.name for one in maps) or "none"
            raise SubmitError(
                f"{name}: no ConfigMap of cached steps has this name or belongs to a pipeline of this name; "
                f"existing: {there}"
            )
    return [one for one in maps if not names or any(_is_of(one, name) for name in names)]


def removed(server: Kubernetes, namespace: str, one: CacheMap, keys: list[str]) -> None:
    """Remove entries. If none is left, the ConfigMap is removed.

    Raises:
        SubmitError: the server cannot be reached or refuses.
    """
    path, what = f"{_path(namespace)}/{one.name}", f"remove entries of {one.name} in {namespace}"
    if len(keys) == len(one.entries):
        server.call("DELETE", path, what)
    else:
        server.call("PATCH", path, what, {"data": dict.fromkeys(keys)}, kind="merge-patch+json")


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def _is_ours(item: dict[str, Any]) -> bool:
    keys = item.get("data") or {}
    return item["metadata"]["name"].endswith(SUFFIX) and bool(keys) and all(map(KEY.fullmatch, keys))


def _is_of(one: CacheMap, name: str) -> bool:
    return one.name == name or one.name.startswith(f"{name.removesuffix(SUFFIX)}-")


def _read(item: dict[str, Any]) -> CacheMap:
    data = item.get("data") or {}
    entries = {key: _time(text) for key, text in data.items()}
    return CacheMap(item["metadata"]["name"], entries, sum(len(k.encode()) + len(v.encode()) for k, v in data.items()))


def _time(entry: str) -> datetime | None:
    try:
        made = datetime.fromisoformat(json.loads(entry)["creationTimestamp"])
    except (ValueError, KeyError, TypeError):
        return None
    return made if made.tzinfo else made.replace(tzinfo=UTC)
