"""The checker of references: each kind of broken one is found, in the manifests of demo."""

import copy

import pytest
from argo_documents import REPOSITORY, documents_of, kinds, pipeline_of, spec_of
from small_ir import container, pipeline

from stereo_core.orchestration.argo import manifests
from stereo_core.orchestration.argo.check import problems

TRAIN = 3  # the fourth kind of step in demo


def _task(documents, name="train"):
    return next(task for task in spec_of(documents)["templates"][0]["dag"]["tasks"] if task["name"] == name)


def _step(documents, index=TRAIN):
    return kinds(documents, "WorkflowTemplate")[index]["spec"]["templates"][-1]


def _called(documents, index=TRAIN):
    return kinds(documents, "WorkflowTemplate")[index]["spec"]["templates"][0]


def _wire(documents, name):
    return next(p for p in _task(documents)["arguments"]["parameters"] if p["name"] == name)


def _given(documents):
    return _task(documents)["arguments"]["parameters"]


def _expression(documents, text):
    artifact = _called(documents)["outputs"]["artifacts"][0]
    artifact.pop("from")
    artifact["fromExpression"] = text


def _set(place, key, value):
    place[key] = value


MUTATIONS = {
    "entrypoint": (lambda d: _set(spec_of(d), "entrypoint", "x"), "entrypoint x: there is no template"),
    "onExit": (lambda d: _set(spec_of(d), "onExit", "x"), "onExit x: there is no template"),
    "templateRef name": (
        lambda d: _set(_task(d)["templateRef"], "name", "x"),
        "task train: there is no template {'name': 'x'",
    ),
    "templateRef template": (lambda d: _set(_task(d)["templateRef"], "template", "x"), "task train: there is no"),
    "depends": (
        lambda d: _set(_task(d), "depends", "x.Succeeded"),
        "task train: depends on x, but there is no such task",
    ),
    "state": (
        lambda d: _set(_task(d), "depends", "convert.Done"),
        "depends on convert.Done, but there is no such state",
    ),
    "cycle": (lambda d: _set(_task(d, "convert-2"), "depends", "train.Succeeded"), "tasks wait for each other"),
    "two tasks": (lambda d: _set(_task(d), "name", "convert"), "two of task convert"),
    "not upstream": (
        lambda d: _set(_task(d), "depends", "synthesize.Succeeded"),
        "{{tasks.convert-2.outputs.artifacts.annotations}} refers to nothing",
    ),
    "unknown parameter": (lambda d: _set(_wire(d, "spec"), "name", "x"), "parameters: its template has no input x"),
    "missing parameter": (
        lambda d: _step(d)["inputs"]["parameters"].append({"name": "x"}),
        "parameters: x has no value",
    ),
    "workflow parameter": (
        lambda d: spec_of(d)["arguments"]["parameters"].pop(),
        "{{workflow.parameters.zero_shot_spec}} refers to nothing",
    ),
    "input in the command": (
        lambda d: _step(d)["inputs"]["parameters"].pop(0),
        "{{inputs.parameters.batch_size}} refers to nothing",
    ),
    "output parameter in an expression": (
        lambda d: _step(d, 1)["outputs"]["parameters"].pop(0),
        "{{tasks.convert.outputs.parameters.executor-output}} refers to nothing",
    ),
    "output artifact": (
        lambda d: _step(d, 1)["outputs"]["artifacts"].pop(0),
        "{{tasks.convert-2.outputs.artifacts.annotations}} refers to nothing",
    ),
    "unknown artifact": (
        lambda d: _set(_task(d)["arguments"]["artifacts"][0], "name", "x"),
        "artifacts: its template has no input x",
    ),
    "missing artifact": (
        lambda d: _task(d, "evaluate")["arguments"]["artifacts"].pop(0),
        "artifacts: annotations has no value",
    ),
    "no end": (lambda d: _set(_wire(d, "spec"), "value", "{{workflow.name"), "a reference has no closing braces"),
    "volume": (lambda d: _step(d)["volumes"].clear(), "there is no volume outputs to mount"),
    "repository": (
        lambda d: _set(spec_of(d)["artifactRepositoryRef"], "key", "x"),
        "artifactRepositoryRef: there is no key x",
    ),
    "nothing to run": (lambda d: _step(d).pop("container"), "it has neither a container nor a dag"),
    "no entrypoint": (lambda d: spec_of(d).pop("entrypoint"), "Workflow demo-: it has no entrypoint"),
    "two parameters": (
        lambda d: spec_of(d)["arguments"]["parameters"].append({"name": "width"}),
        "two of parameter width",
    ),
    "two templates": (lambda d: spec_of(d)["templates"].append(spec_of(d)["templates"][0]), "two of template demo"),
    "two inputs": (
        lambda d: _step(d)["inputs"]["parameters"].append({"name": "spec", "default": ""}),
        "two of input of parameters spec",
    ),
    "two arguments": (lambda d: _given(d).append(_given(d)[0]), "two of argument of parameters"),
    "two WorkflowTemplates": (lambda d: d.insert(1, d[1]), "two of document WorkflowTemplate demo-synthesize"),
    "pull secret": (
        lambda d: _set(spec_of(d), "imagePullSecrets", [{"name": "{{workflow.parameters.x}}"}]),
        "Workflow demo-: {{workflow.parameters.x}} refers to nothing",
    ),
    "depends without an operator": (
        lambda d: _set(_task(d, "evaluate-3"), "depends", "train.Succeeded convert.Succeeded"),
        "its depends has a syntax error: train.Succeeded convert.Succeeded",
    ),
    "depends with one bar": (
        lambda d: _set(_task(d, "evaluate-3"), "depends", "train | convert"),
        "depends has a syntax error",
    ),
    "depends with a bracket": (
        lambda d: _set(_task(d, "evaluate-3"), "depends", "(train && convert"),
        "depends has a syntax error",
    ),
    "no value": (lambda d: _wire(d, "spec").pop("value"), "parameters: spec gets no value"),
    "artifact from nowhere": (
        lambda d: _task(d)["arguments"]["artifacts"][0].pop("from"),
        "artifacts: annotations has no source",
    ),
    "artifact from a parameter": (
        lambda d: _set(
            _task(d)["arguments"]["artifacts"][0], "from", "{{tasks.convert.outputs.parameters.executor-output}}"
        ),
        "annotations cannot take tasks.convert.outputs.parameters.executor-output",
    ),
    "artifact from an expression": (
        lambda d: _expression(d, "tasks['train'].outputs.artifacts['x']"),
        "output of artifacts checkpoint: {{tasks.train.outputs.artifacts.x}} refers to nothing",
    ),
    "artifact from no expression": (
        lambda d: _expression(d, "tasks['train'].status == 'Succeeded' ? "),
        "has a syntax error: expected a value, found the end",
    ),
    "parameter from an artifact": (
        lambda d: _set(_wire(d, "spec"), "value", "{{tasks.convert.outputs.artifacts.annotations}}"),
        "spec cannot take tasks.convert.outputs.artifacts.annotations",
    ),
    "output parameter": (
        lambda d: _step(d)["outputs"]["parameters"][0].pop("valueFrom"),
        "output parameter executor-output has no source",
    ),
    "output of a DAG": (
        lambda d: _called(d)["outputs"]["artifacts"][0].pop("from"),
        "output of artifacts checkpoint: it has no source",
    ),
    "output artifact's place": (
        lambda d: _set(_step(d)["outputs"]["artifacts"][0], "path", "/elsewhere/checkpoint"),
        "output artifact checkpoint: /elsewhere/checkpoint is not in a mounted volume",
    ),
    "two mounts": (
        lambda d: _step(d)["container"]["volumeMounts"].append({"name": "cache", "mountPath": "/tmp"}),
        "two of mount at /tmp",
    ),
    "expression": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=toJson(workflow.parameters['train_spec']}}"),
        "has a syntax error: expected ,, found the end",
    ),
    "operator": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=workflow.name === 'x'}}"),
        "the expression \"workflow.name === 'x'\" has a syntax error",
    ),
    "function": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=toJSON(workflow.name)}}"),
        "there is no function toJSON in 'toJSON(workflow.name)'",
    ),
    "behind a syntax error": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=(}} {{workflows.name}}"),
        "{{workflows.name}} refers to nothing",
    ),
    "no operand": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=workflow.name == *}}"),
        "has a syntax error: expected a value, found '*'",
    ),
    "name in an expression": (
        lambda d: _set(_wire(d, "spec"), "value", "{{=toJson(workflows.name)}}"),
        "{{workflows.name}} refers to nothing",
    ),
    "retry": (
        lambda d: _set(_step(d)["retryStrategy"], "expression", "lastRetry.code == '1'"),
        "template train-run: retryStrategy: {{lastRetry.code}} refers to nothing",
    ),
    "retry's syntax": (
        lambda d: _set(_step(d)["retryStrategy"], "expression", "lastRetry.exitCode in ['1'"),
        "template train-run: retryStrategy: the expression",
    ),
}


@pytest.fixture(scope="module")
def whole() -> list[dict]:
    documents = manifests(pipeline_of("demo"), {}, REPOSITORY)
    assert problems(documents) == []
    return documents


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_reference_is_found(name, whole):
    mutate, message = MUTATIONS[name]
    documents = copy.deepcopy(whole)
    mutate(documents)
    assert any(message in problem for problem in problems(documents)), problems(documents)


def test_a_cron_workflow_is_checked_as_a_workflow_is():
    documents = manifests(pipeline_of("demo"), {}, REPOSITORY, schedule="0 3 * * *")
    spec = documents[-1]["spec"]["workflowSpec"]
    spec["arguments"]["parameters"][0].pop("value")
    spec["templates"][0]["dag"]["tasks"][0]["depends"] = "nobody"
    spec.pop("entrypoint")
    found = "\n".join(problems(documents))
    for wrong in (
        "CronWorkflow demo: it has no entrypoint",
        "CronWorkflow demo: parameter backend has no value, and a CronWorkflow cannot ask for one",
        "task synthesize: depends on nobody, but there is no such task",
    ):
        assert wrong in found


def test_a_cron_workflow_without_parameters():
    documents = documents_of(pipeline({"a": container("print()")}), schedule="0 3 * * *")
    assert documents[-1]["kind"] == "CronWorkflow" and problems(documents) == []


def test_a_workflow_that_keeps_its_pods(whole):
    documents = copy.deepcopy(whole)
    spec_of(documents).pop("podGC")
    assert problems(documents) == []


def test_parameters_are_described(whole):
    described = {p["name"]: p["description"] for p in spec_of(whole)["arguments"]["parameters"]}
    assert described["num_epochs"] == "Epochs to fine-tune."
