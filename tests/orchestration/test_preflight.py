"""What is wrong with a pipeline's values is told before its first step, all of it at once."""

from pathlib import Path

import flow_steps
import pytest
from kfp import dsl
from PIL import Image
from pipelines_command import command
from stereo_components import train

from stereo_core.orchestration.compile import compiled_path, pipeline_folders
from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.preflight import check

COMPILED = {folder.name: compiled_path(folder) for folder in pipeline_folders()}
WRONG = (
    "train_spec={train: {optim: {lrr: 1}}}",
    "num_epochs=-3",
    "evaluate_spec={evaluate: {resise: pad}}",
    "export_spec={export: {input_height: 100}}",
    "engine_spec={gen_trt_engine: {backend: tensort}}",
)
TOLD = (
    "step train: parameter train_spec: train.optim.lrr: unknown key; did you mean train.optim.lr?",
    "step train: parameter num_epochs: train.num_epochs: -3 is less than the smallest value 1",
    "step evaluate, trt-evaluate: parameter evaluate_spec: evaluate.resise: unknown key; did you mean evaluate.resize?",
    "step export: parameter export_spec: export.input_height: 100 is not a multiple of 32; the next larger one is 128",
    "step gen-trt-engine: parameter engine_spec: gen_trt_engine.backend: 'tensort' is not one of",
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "-o", "run"),
        ("argo", "--artifact-repository", "s3://bucket"),
        ("submit", "--host", "http://kubeflow.example"),
        ("submit", "--argo", "--artifact-repository", "s3://bucket"),
    ],
)
def test_every_spec_is_checked_first(tmp_path, arguments):
    params = (part for text in ("images_uri=s3://bucket/images", *WRONG) for part in ("-p", text))
    done = command(arguments[0], COMPILED["train_to_engine"], *arguments[1:], *params, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert not [line for line in TOLD if line not in done.stderr], done.stderr
    assert done.stderr.count("\n") == 1 + len(WRONG)


@pytest.mark.parametrize("name", COMPILED)
def test_shipped_pipelines_are_right_at_their_defaults(name):
    check(load_pipeline(COMPILED[name]), {})


def test_specs_name_files_that_only_a_step_sees():
    sources = {"data_sources": [{"data_file": "train.txt", "data_root": "/of/the/cluster"}]}
    spec = {"dataset": {"train_dataset": sources}, "train": {"pretrained_model_path": "/of/the/cluster/model.pth"}}
    check(load_pipeline(COMPILED["train_to_engine"]), {"images_uri": "s3://bucket/images", "train_spec": spec})


@dsl.pipeline(name="loops")
def loops(numbers: list = [1], file: str = "", big: bool = False):  # noqa: B006
    with dsl.ParallelFor(numbers) as number:
        flow_steps.measure(epe=number, name="x")
    with dsl.If(big == True):  # noqa: E712 - kfp's way
        flow_steps.measure(epe=0.5, name="y")


@dsl.pipeline(name="spec-file")
def spec_file(uri: str):
    data = dsl.importer(artifact_uri="s3://bucket/data", artifact_class=dsl.Dataset).output
    said = dsl.importer(artifact_uri=uri, artifact_class=dsl.Artifact).output
    train(images=data, annotations=data, spec_file=said)


def test_items_of_loops_have_the_type_of_what_takes_them(compiled_once):
    graph = load_pipeline(compiled_once(loops))
    check(graph, {"numbers": [1, "1e-4", "010"]})
    with pytest.raises(GraphError) as refused:
        check(graph, {"numbers": [1, "much", "1_0"]})
    assert str(refused.value).splitlines()[1:] == [
        "step for-loop-1-1-measure: parameter epe: expected a number, got 'much'",
        "step for-loop-1-2-measure: parameter epe: expected a number, got '1_0'",
    ]


def test_a_spec_file_of_this_machine_is_read(compiled_once, tmp_path):
    graph, file = load_pipeline(compiled_once(spec_file)), tmp_path / "train.yaml"
    check(graph, {"uri": str(file)})
    check(graph, {"uri": "s3://bucket/train.yaml"})
    file.write_text("train: {num_epoch: 3}")
    with pytest.raises(GraphError, match=r"step train: input spec_file: train\.num_epoch: unknown key; did you mean"):
        check(graph, {"uri": str(file)})


def sizes(tmp_path, **specs: dict) -> dict:
    """Arguments for train_to_engine with images of 96 x 64 px and an ONNX file of 128 x 96."""
    write_pairs(tmp_path)
    patterns = {"image_dir_pattern": ["left"], "right_dir_pattern": ["right"], "image_extension": ".png"}
    export = {"export": {"input_height": 96, "input_width": 128}}
    return {"images_uri": str(tmp_path), "convert_spec": patterns, "export_spec": export} | specs


def write_pairs(folder: Path) -> None:
    for side in ("left", "right"):
        (folder / side).mkdir()
        Image.new("RGB", (96, 64)).save(folder / side / "0.png")


def test_an_engine_s_range_that_does_not_hold_the_file_s_size(tmp_path):
    graph = load_pipeline(COMPILED["train_to_engine"])
    engine = {"gen_trt_engine": {"min_height": 160, "opt_height": 192, "opt_width": 128}}
    told = r"step gen-trt-engine: gen_trt_engine\.min_height, .* do not include export\.input_height 96; leave them out"
    with pytest.raises(GraphError, match=told) as refused:
        check(graph, sizes(tmp_path, engine_spec=engine))
    assert "width" not in str(refused.value)


def test_images_of_another_size_than_the_engine_s(tmp_path):
    graph, resize = load_pipeline(COMPILED["train_to_engine"]), {"evaluate": {"resize": "none"}}
    arguments = sizes(tmp_path)
    check(graph, arguments)
    with pytest.raises(GraphError) as refused:
        check(graph, arguments | {"evaluate_spec": resize})
    told = str(refused.value).splitlines()[1:]
    assert len(told) == 1 and told[0].startswith("step trt-evaluate: evaluate.resize: none: ")
    assert "takes 128 x 96 px (width x height)" in told[0] and f"{tmp_path}/left/0.png has 96 x 64;" in told[0]
    fitting = {"export": {"input_height": 64, "input_width": 96}}
    check(graph, arguments | {"evaluate_spec": resize, "export_spec": fitting})


def test_a_pipeline_of_another_version_is_found_before_its_first_step(tmp_path):
    """Its late steps would fail after the training, or do without a parameter that they do not know."""
    text = COMPILED["train_to_engine"].read_text()
    other = tmp_path / "other.yaml"
    for was, now, told in (
        (
            "batch_size",
            "images_at_once",
            r"step .*train.*: stereo-pipelines .* has no parameter images_at_once of train",
        ),
        ("annotations", "lists", "has no input lists of train"),
        ("- trt_evaluate", "- measure_engine", "step trt-evaluate: stereo-pipelines .* has no step measure_engine"),
    ):
        other.write_text(text.replace(was, now))
        assert text != other.read_text()
        with pytest.raises(GraphError, match=told):
            check(load_pipeline(other), {"images_uri": "s3://bucket/images"})
