"""Conditions, loops, exit handlers and pipelines in pipelines on Argo: as the local engine runs them, or refused."""

import json

import flow_steps
import pytest
from argo_documents import REPOSITORY, kinds, validate
from argo_simulator import Failed, Simulator
from kfp import dsl, kubernetes
from test_flow import BRANCHES

from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.argo.check import problems
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline


@pytest.fixture
def written(compiled_once):
    """Manifests of a function of the DSL: valid, with every reference resolved."""

    def write(function, arguments=None, **options) -> list[dict]:
        documents = manifests(load_pipeline(compiled_once(function)), arguments or {}, REPOSITORY, **options)
        assert problems(documents) == []
        validate(documents)
        return documents

    return write


def text(run: Simulator, task: str) -> str:
    return run.stored[f"tasks.{task}.outputs.artifacts.out"].read_text()


@dsl.pipeline(name="chosen")
def chosen(epe: float = 0.5, limit: float = 1.0, name: str = "x", flag: bool = True):
    """As flow_steps.branches, with a parameter for dsl.OneOf."""
    found = flow_steps.measure(epe=epe, name=name)
    with dsl.If(found.outputs["found"] <= limit):
        good = flow_steps.measure(epe=1.0, name="good")
        with dsl.If(flag == True):  # noqa: E712
            flow_steps.add(data=good.outputs["out"], text=" and flag")
    with dsl.Elif(found.outputs["of"] == "it's && (so)"):
        named = flow_steps.measure(epe=1.0, name="named")
    with dsl.Else():
        bad = flow_steps.measure(epe=1.0, name="bad")
    flow_steps.say(text=dsl.OneOf(good.outputs["of"], named.outputs["of"], bad.outputs["of"]))


CHOSEN = {
    "if": ({"measure-2", "add"}, "good"),
    "inside": ({"measure-2"}, "good"),
    "elif": ({"measure-3"}, "named"),
    "else": ({"measure-4"}, "bad"),
    "NaN is not at most 1": ({"measure-4"}, "bad"),
}


@pytest.mark.parametrize("case", BRANCHES)
def test_one_branch_runs(written, tmp_path, case):
    wanted, result = CHOSEN[case]
    run = Simulator(written(chosen, BRANCHES[case][0]), tmp_path, {})
    run.run()
    assert set(run.pods) == {"measure", "say"} | wanted and set(run.states.values()) == {"Succeeded", "Skipped"}
    assert text(run, "say") == result


def test_the_same_workflow_takes_another_branch_when_it_is_submitted_so(written, tmp_path):
    documents = written(chosen)
    run = Simulator(documents, tmp_path, {}, {"limit": "0.25", "name": "it's && (so)"})
    run.run()
    assert text(run, "say") == "named"
    task = next(t for t in documents[-1]["spec"]["templates"][0]["dag"]["tasks"] if t["name"] == "say")
    options = (f"({name}.Succeeded || {name}.Skipped)" for name in ("add", "measure-2", "measure-3", "measure-4"))
    assert task["depends"] == " && ".join(options)


def test_a_failure_is_no_skip(written, tmp_path):
    run = Simulator(written(flow_steps.watched, {"code": 3}), tmp_path, {})
    with pytest.raises(Failed, match="exit code 3"):
        run.run()
    assert run.states == {"say": "Succeeded", "fail": "Failed", "add": "Omitted", "tell": "Succeeded"}
    status, to = json.loads(text(run, "tell"))
    assert (status["state"], status["pipelineTaskName"], to) == ("FAILED", "exit-handler-1", "me")
    failures = json.loads(json.loads(status["error"]["message"]))
    assert [one["message"] for one in failures if one["displayName"] == "fail(0)"] == ["main: Error (exit code 3)"]


def test_an_exit_handler_is_the_workflows(written, tmp_path):
    documents = written(flow_steps.watched)
    spec = documents[-1]["spec"]
    assert spec["onExit"] == "on-exit" and [t["name"] for t in spec["templates"][1]["dag"]["tasks"]] == ["tell"]
    run = Simulator(documents, tmp_path, {})
    run.run()
    assert "memoize" in documents[1]["spec"]["templates"][0] and "memoize" not in documents[-2]["spec"]["templates"][0]
    assert run.pods == ["say", "tell"] and json.loads(text(run, "tell"))[0]["state"] == "SUCCEEDED"


def test_loops_are_unrolled_with_their_values(written, tmp_path):
    items = ["x", 'z"{ \\', "it's\n"]
    arguments = {"rows": [{"of": item} for item in items], "key": '"k" & {'}
    documents = written(flow_steps.rounds, arguments)
    spec = documents[-1]["spec"]
    assert [p["name"] for p in spec["arguments"]["parameters"]] == ["key"], "what is unrolled can not be given later"
    names = [document["metadata"]["name"] for document in kinds(documents, "WorkflowTemplate")]
    assert len([name for name in names if "measure" in name]) == 1, "rounds share their templates"
    run = Simulator(documents, tmp_path, {})
    run.run()
    assert text(run, "for-loop-1-1-add") == '"k" & {=b.only b' and run.states["for-loop-1-0-add"] == "Skipped"
    texts, given, inside = json.loads(text(run, "gather"))
    assert texts == given == items
    assert inside == {"key": '"k" & {', "inside": {"is": '<"k" & {>'}}
    first = next(t for t in spec["templates"][0]["dag"]["tasks"] if t["name"] == "for-loop-1-1-inner-say")
    assert "for-loop-1-0-inner-add.Failed" in first["depends"], "one round at a time, whatever became of the last"


@dsl.pipeline(name="secrets")
def secrets(keys: str = "store-keys", pull: str = "registry"):
    """A step with secrets whose names are parameters, and one in a block."""
    with dsl.ExitHandler(flow_steps.tell()):
        step = flow_steps.say(text="x")
        kubernetes.use_secret_as_env(step, keys, {"token": "TOKEN"}, optional=True)
        kubernetes.use_config_map_as_env(step, "settings", {"place": "PLACE"})
        kubernetes.set_image_pull_secrets(step, [pull])


def test_names_of_secrets_are_parameters(written):
    documents = written(secrets, {"keys": "others"})
    template = documents[1]["spec"]["templates"][-1]
    token, place = sorted(template["container"]["env"], key=lambda variable: variable["name"], reverse=True)
    key = {"name": "{{workflow.parameters.keys}}", "key": "token", "optional": True}
    assert token == {"name": "TOKEN", "valueFrom": {"secretKeyRef": key}}
    [(kind, key)] = place["valueFrom"].items()
    assert (place["name"], kind, key["name"], key["key"]) == ("PLACE", "configMapKeyRef", "settings", "place")
    spec = documents[-1]["spec"]
    assert spec["imagePullSecrets"] == [{"name": "{{workflow.parameters.pull}}"}]
    assert {p["name"]: p["value"] for p in spec["arguments"]["parameters"]} == {"keys": "others", "pull": "registry"}


@dsl.pipeline(name="partly")
def partly():
    """A step outside of the exit handler's block."""
    flow_steps.say(text="outside")
    with dsl.ExitHandler(flow_steps.tell()):
        flow_steps.say(text="inside")


@dsl.pipeline(name="ignoring")
def ignoring():
    """A step takes an output of one that may fail."""
    flow_steps.repeat(text=flow_steps.measure(epe=1.0, name="x").outputs["of"]).ignore_upstream_failure()


@dsl.pipeline(name="looped")
def looped(words: list):
    """A loop over a parameter without a default."""
    with dsl.ParallelFor(words) as word:
        flow_steps.say(text=word)


@dsl.pipeline(name="braces")
def braces(word: str = "x"):
    """A condition on a text that would end an expression."""
    with dsl.If(word == "}}"):
        flow_steps.say(text="x")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (partly, "task tell: on Argo an exit handler must watch the whole pipeline; move these tasks into .*: say"),
        (ignoring, "task repeat: on Argo it cannot use outputs of measure, because it runs even if measure fails"),
        (looped, "parameter words: a loop iterates over it, so it needs a value now"),
        (braces, "task say, condition: Argo would read }}"),
        (flow_steps.branches, r"task add-2: dsl.OneOf of artifacts \(data\) is not supported on Argo"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_argo_can_not_do_is_refused_by_name(compiled_once, function, message):
    with pytest.raises(GraphError, match=message):
        manifests(load_pipeline(compiled_once(function)), {}, REPOSITORY)


def _task(documents, name):
    tasks = [task for template in documents[-1]["spec"]["templates"] for task in template["dag"]["tasks"]]
    return next(task for task in tasks if task["name"] == name)


def test_broken_conditions_and_handlers_are_found(written):
    for name, change, message in (
        ("say", {"depends": "measure-2.Succeeded"}, "{{tasks.measure-3.outputs.parameters.of}} refers to nothing"),
        ("measure-2", {"depends": ""}, "{{tasks.measure.outputs.parameters.found}} refers to nothing"),
        ("measure-2", {"when": "a == b"}, "its condition is not an expression"),
        ("measure-2", {"when": "{{=workflow.parameters['nothing'] == 'x'}}"}, "{{workflow.parameters.nothing}} refers"),
    ):
        documents = written(chosen)
        _task(documents, name).update(change)
        assert any(message in problem for problem in problems(documents)), problems(documents)
    documents = written(flow_steps.watched)
    documents[-1]["spec"]["onExit"] = "x"
    found = problems(documents)
    assert any("onExit x: there is no template" in problem for problem in found)
    assert any("{{workflow.failures}} refers to nothing" in problem for problem in found), "known only to the handler"
