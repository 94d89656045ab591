"""The component library: what is committed is what the DSL says, and others can wire it."""

import ast
import importlib
import inspect
import json
import pydoc
import re

import pytest
import stereo_components
import yaml
from kfp import components, dsl

from stereo_core.orchestration.compile import BEGIN, END, compiled_path, component_folders
from stereo_core.spec.experiment import spec_class
from stereo_core.step.launch import main
from stereo_core.step.sources import CODING
from stereo_core.verbs import VERBS, required, steps

FOLDERS = {folder.name: folder for folder in component_folders()}

TYPES = dict.fromkeys(("images", "annotations", "disparity"), "Dataset")
TYPES |= dict.fromkeys(("checkpoint", "onnx", "engine", "quantized", "model"), "Model")
TYPES |= {"metrics": "Metrics", "report": "HTML", "card": "Markdown", "summary": "Markdown", "spec": "Artifact"}
ROWS = {name: VERBS[{"train_distributed": "train"}.get(name, name)] for name in FOLDERS}


def ports(section: dict) -> dict[str, str]:
    return {
        name + ("?" if item.get("isOptional") else ""): item["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, item in section.get("artifacts", {}).items()
    }


def typed(ports: dict[str, str]) -> dict[str, str]:
    return {port: TYPES[kind] for port, kind in ports.items()}


def test_every_component_is_there():
    assert set(FOLDERS) == set(stereo_components.__all__)
    assert {row.name for row in ROWS.values()} == set(steps())


@pytest.mark.parametrize("name", ROWS)
def test_help_shows_the_inputs_of_a_component_and_their_meaning(name):
    """It showed those of kfp's class."""
    component = getattr(stereo_components, name)
    first, _, rest = pydoc.plain(pydoc.render_doc(component)).partition(f"    {name}(*, ")[2].partition("\n")
    inputs = list(component.component_spec.inputs)
    assert re.findall(r"(\w+): ", first) == inputs == list(inspect.signature(component).parameters)
    assert "typing" not in first and all(re.search(rf"^ +{one}: ", rest, re.MULTILINE) for one in inputs)


@pytest.mark.parametrize("name", ROWS)
def test_ports(name):
    spec = yaml.safe_load(compiled_path(FOLDERS[name]).read_text())
    component = next(iter(spec["components"].values()))
    row = ROWS[name]
    spec_file = {} if row.flat_parameters else {"spec_file?": "spec"}
    assert ports(component.get("inputDefinitions", {})) == typed(row.inputs | spec_file)
    assert ports(component["outputDefinitions"]) == typed(row.outputs)
    parameters = component["inputDefinitions"]["parameters"]
    assert row.flat_parameters or parameters["spec"]["parameterType"] == "STRUCT"
    assert all(item.get("isOptional") for item in parameters.values()), "every parameter has a default"
    documented = [*component["inputDefinitions"].get("artifacts", {}).values(), *parameters.values()]
    documented += component["outputDefinitions"]["artifacts"].values()
    assert all(item.get("description") for item in documented), "Args and Returns name every port"


@pytest.mark.parametrize("name", ROWS)
def test_reloads_and_starts_its_own_action(name):
    component = components.load_component_from_file(str(compiled_path(FOLDERS[name])))
    container = component.component_spec.implementation.container
    assert component.component_spec.name == name.replace("_", "-")
    assert container.command == ["depth_net-launch"] and container.args == [ROWS[name].name, "{{$}}"]
    assert component.component_spec.description


@pytest.mark.parametrize("name", ROWS)
def test_typed_parameters_reach_a_spec_key(name):
    """A parameter that is neither the spec nor known to the launcher would be silently ignored."""
    spec = yaml.safe_load(compiled_path(FOLDERS[name]).read_text())
    parameters = set(next(iter(spec["components"].values()))["inputDefinitions"]["parameters"])
    row = ROWS[name]
    if row.flat_parameters:
        fields = spec_class(name).model_fields
        assert parameters <= set(fields)
        declared = spec["root"]["inputDefinitions"]["parameters"].items()
        defaults = {key: item["defaultValue"] for key, item in declared if "defaultValue" in item}
        assert defaults == {key: fields[key].default for key in parameters - {"status"}}
        return
    known = {"spec", *row.parameters} - ({"num_gpus", "num_nodes"} if name == "train" else set())
    known |= {"dataset_name", *CODING} if row.splits or row.lists else set()
    assert parameters == known


INPUTS = [(name, port) for name, row in ROWS.items() for port in required(row.inputs)]
INPUTS += [(name, "spec_file") for name, row in ROWS.items() if not row.flat_parameters]
MADE = {"images", "annotations", "checkpoint", "onnx", "engine", "metrics", "spec"}  # kinds that some step gives


@pytest.mark.parametrize(("name", "port"), INPUTS)
def test_every_input_is_checked_for_its_kind(name, port, tmp_path, capsys):
    """What some step gives is taken, anything else ends the task before its results folder is made."""
    given = {"artifacts": [{"uri": str(tmp_path), "metadata": {"kind": "nonsense"}}]}
    outputs = {"outputFile": str(tmp_path / "executor_output.json")}
    message = {"inputs": {"artifacts": {port: given}}, "outputs": outputs}
    assert main([ROWS[name].name, json.dumps(message)]) == 2
    told = capsys.readouterr().err
    assert f"input {port}: {tmp_path} is of kind 'nonsense'; " in told and not list(tmp_path.iterdir())
    wanted = set(re.findall(r"'(\w+)'", told.partition("; ")[2]))
    assert wanted and wanted <= MADE


@pytest.mark.parametrize("name", ROWS)
def test_metadata_and_readme(name):
    metadata = yaml.safe_load((FOLDERS[name] / "metadata.yaml").read_text())
    assert metadata["name"] == name
    assert {"stability", "tags", "dependencies", "lastVerified", "links"} <= set(metadata)
    assert (FOLDERS[name] / metadata["links"]["documentation"]).is_file()
    newest = "TASK_FINAL_STATUS" in (FOLDERS[name] / "component.yaml").read_text()
    assert metadata["dependencies"]["kubeflow"][0]["version"] == (">=2.14" if newest else ">=2.5")
    text = (FOLDERS[name] / "README.md").read_text()
    assert text.index(BEGIN) < text.index(END)


@pytest.mark.parametrize("name", ROWS)
def test_components_know_only_kfp(name):
    source = inspect.getsource(importlib.import_module(f"stereo_components.{name}.component"))
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    assert imported <= {"kfp", "..image", "typing"}


def test_wiring_with_a_foreign_component():
    """Standard types connect with other people's steps; a Dataset where a Model is wanted does not compile."""

    @dsl.container_component
    def download(url: str, pairs: dsl.Output[dsl.Dataset]):
        return dsl.ContainerSpec(image="curl", command=["curl"], args=[url, pairs.path])

    convert = components.load_component_from_file(str(compiled_path(FOLDERS["convert"])))

    @dsl.pipeline(name="foreign")
    def good():
        pairs = download(url="http://x").outputs["pairs"]
        lists = convert(images=pairs).outputs["annotations"]
        stereo_components.train(images=pairs, annotations=lists)

    assert set(good.pipeline_spec.root.dag.tasks) == {"download", "convert", "train"}
    with pytest.raises(Exception, match=r"system\.Dataset.*system\.Model|[Ii]ncompatible"):

        @dsl.pipeline(name="wrong")
        def bad():
            stereo_components.export(checkpoint=download(url="http://x").outputs["pairs"])


def test_image_can_be_chosen_when_compiling(monkeypatch):
    from stereo_components import image

    monkeypatch.setenv("STEREO_PIPELINES_IMAGE", "registry/x@sha256:1")
    try:
        assert importlib.reload(image).launch("train").image == "registry/x@sha256:1"
    finally:
        monkeypatch.undo()
        importlib.reload(image)
