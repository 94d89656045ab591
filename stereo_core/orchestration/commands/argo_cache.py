"""`stereo-pipelines argo-cache ls|rm`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.names import NAMESPACE
from stereo_core.values import counted

Command = TypeVar("Command", bound=Callable[..., Any])
_WHERE = (
    click.option(
        "--namespace", "-n", type=NAMESPACE, default="argo", show_default=True, help="Namespace of Argo's controller."
    ),
    click.option("--context", default="", help="Context of the kubeconfig [default: the current one]."),
)


def _of_a_cluster(command: Command) -> Command:
    for option in reversed(_WHERE):
        command = option(command)
    return command


@click.group("argo-cache")
def argo_cache() -> None:
    """List and remove Argo's cache of steps. Each step has a ConfigMap; if it is full (1 MiB), the step fails."""


@argo_cache.command("ls")
@_of_a_cluster
def ls_command(namespace: str, context: str) -> None:
    """List the cache's ConfigMaps, the fullest first."""
    from stereo_core.orchestration.argo_cache import ROOM, cache_maps
    from stereo_core.orchestration.servers import Kubernetes

    maps = cache_maps(Kubernetes(context), namespace)
    width = max((len(one.name) for one in maps), default=0)
    for one in maps:
        times = [made for made in one.entries.values() if made]
        since = f"{min(times):%Y-%m-%d} to {max(times):%Y-%m-%d}" if times else ""
        entries = counted(len(one.entries), "entry", "entries")
        click.echo(f"{one.name:{width}}  {entries:>13}  {one.size / ROOM:6.1%} full  {since}".rstrip())
    if not maps:
        click.echo(f"no cache entries in namespace {namespace}", err=True)


@argo_cache.command("rm")
@click.argument("names", nargs=-1, metavar="[PIPELINE|CONFIGMAP]...")
@click.option("--all", "every", is_flag=True, help="Entries of all pipelines of this library.")
@click.option(
    "--older-than", "days", type=click.FloatRange(min=0), default=0.0, metavar="DAYS", help="Only old entries."
)
@click.option("--send", is_flag=True, help="Remove the entries; without it they are only listed.")
@_of_a_cluster
def rm_command(names: tuple[str, ...], every: bool, days: float, send: bool, namespace: str, context: str) -> None:
    """Remove cache entries, so that their steps run again. Artifacts stay in the bucket.

    \b
    stereo-pipelines argo-cache rm --all --older-than 30 --send
    """
    from stereo_core.orchestration.argo_cache import cache_maps, chosen, removed
    from stereo_core.orchestration.servers import Kubernetes

    if bool(names) == every:
        raise GraphError("argo-cache rm: name pipelines or ConfigMaps, or give --all (not both)")
    server, now = Kubernetes(context), datetime.now(UTC)
    for one in chosen(cache_maps(server, namespace), names):
        keys = one.older_than(days, now) if days else list(one.entries)
        if not keys:
            continue
        if send:
            removed(server, namespace, one, keys)
        entries = counted(len(one.entries), "entry", "entries")
        click.echo(f"{one.name}: {len(keys)} of {entries} {'removed' if send else 'would be removed'}")
    if not send:
        click.echo("nothing was removed; add --send to remove", err=True)
