"""`argo-cache ls|rm`: the real client against a small server that has the cache's ConfigMaps."""

import hashlib
import json

import pytest
from click.testing import CliRunner
from test_submit import TOKEN, kubernetes, server  # noqa: F401  (fixtures)

from stereo_core.errors import UserError
from stereo_core.orchestration.commands.argo_cache import argo_cache

MAPS = "/api/v1/namespaces/argo/configmaps"


def entry(day: str, size: int = 10) -> str:
    return json.dumps({"nodeID": "n", "creationTimestamp": f"{day}T00:00:00Z", "outputs": {"x": "x" * size}})


def key(name: str) -> str:
    return f"stereo-{hashlib.sha256(name.encode()).hexdigest()}"


@pytest.fixture
def cached(kubernetes):  # noqa: F811
    def config_map(name: str, **data: str) -> dict:
        return {"metadata": {"name": name, "namespace": "argo"}, "data": {key(k): v for k, v in data.items()}}

    maps = [
        config_map("demo-train-cache", new=entry("2999-01-01"), old=entry("2020-01-01"), odd="not ours"),
        config_map("demo-export-cache", full=entry("2020-02-02", 524288)),
        config_map("demonstration-say-cache", one=entry("2020-01-01")),
        config_map("somebody-elses", one=entry("2020-01-01")),
    ]
    theirs = {"metadata": {"name": "print-message-cache"}, "data": {"hello": entry("2020-01-01")}}  # Argo's own example
    maps += [theirs, {"metadata": {"name": "empty-cache"}}]
    kubernetes.answers["GET", MAPS] = {"items": maps}
    for name in ("demo-train-cache", "demo-export-cache", "demonstration-say-cache"):
        for method in ("DELETE", "PATCH"):
            kubernetes.answers[method, f"{MAPS}/{name}"] = {"kind": "Status"}
    return kubernetes


def said(*words: str) -> list[str]:
    result = CliRunner().invoke(argo_cache, words)
    assert result.exit_code == 0, result.exception
    assert TOKEN not in result.output
    return result.stdout.splitlines()


def changes(server) -> list[tuple]:  # noqa: F811
    return [
        (method, path.removeprefix(f"{MAPS}/"), body) for method, path, _, body, _ in server.calls if method != "GET"
    ]


def test_the_fullest_comes_first(cached):
    first, *_ = lines = said("ls")
    assert first.split() == ["demo-export-cache", "1", "entry", "50.0%", "full", "2020-02-02", "to", "2020-02-02"]
    assert [line.split()[0] for line in lines[1:]] == ["demo-train-cache", "demonstration-say-cache"]
    assert cached.calls[0][2] == {"labelSelector": "workflows.argoproj.io/configmap-type=Cache"}


def test_nothing_goes_without_send(cached):
    assert said("rm", "demo") == [
        "demo-export-cache: 1 of 1 entry would be removed",
        "demo-train-cache: 3 of 3 entries would be removed",
    ]
    assert changes(cached) == []


def test_a_pipelines_entries(cached):
    said("rm", "demo", "--send")
    assert changes(cached) == [("DELETE", "demo-export-cache", None), ("DELETE", "demo-train-cache", None)]


def test_the_old_ones_of_all(cached):
    said("rm", "--all", "--older-than", "30", "--send")
    assert changes(cached) == [
        ("DELETE", "demo-export-cache", None),
        ("PATCH", "demo-train-cache", {"data": {key("old"): None, key("odd"): None}}),
        ("DELETE", "demonstration-say-cache", None),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rm"], "name pipelines or ConfigMaps, or give --all"),
        (["rm", "demo", "--all"], "not both"),
        (
            ["rm", "dem"],
            "dem: no ConfigMap of cached steps has this name or belongs to a pipeline of this name; existing: ",
        ),
    ],
)
def test_what_is_meant_must_be_clear(cached, words, message):
    result = CliRunner().invoke(argo_cache, words)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert changes(cached) == []


def test_a_server_that_refuses(cached):
    cached.refusal = (403, {"message": "configmaps is forbidden"})
    result = CliRunner().invoke(argo_cache, ["ls"])
    assert "list the cache's ConfigMaps in argo: 403 Forbidden: configmaps is forbidden" in str(result.exception)
