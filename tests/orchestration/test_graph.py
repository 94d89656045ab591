"""PipelineSpec IR -> graph: what is read is right, what can not be run is refused by name."""

import pytest
from kfp import compiler, dsl, kubernetes
from small_ir import container, pipeline
from stereo_components import convert, synthesize, train

from stereo_core.orchestration.graph import (
    Argument,
    Constant,
    GraphError,
    Importer,
    Output,
    Parameter,
    Retry,
    load_pipeline,
    parse,
    typed,
)


@pytest.fixture
def compile_to(tmp_path):
    def write(function):
        path = tmp_path / "pipeline.yaml"
        compiler.Compiler().compile(function, str(path))
        return load_pipeline(path)

    return write


def test_reads_what_kfp_writes(compile_to):
    @dsl.pipeline(name="some-pipeline", description="What it does.")
    def some(uri: str, epochs: int = 3, spec: dict = {"a": [1, 0.5], "b": "x"}):  # noqa: B006
        images = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, metadata={"kind": "images"})
        lists = convert(images=images.output, spec=spec).set_caching_options(False)
        lists.set_retry(num_retries=3, backoff_duration="2s", backoff_factor=3.0, backoff_max_duration="10s")
        first = train(images=images.output, annotations=lists.outputs["annotations"], num_epochs=epochs)
        second = train(images=images.output, annotations=lists.outputs["annotations"], spec={"n": 2})
        second.after(first)
        kubernetes.set_timeout(second, 90)

    graph = compile_to(some)
    assert (graph.name, graph.description) == ("some-pipeline", "What it does.")
    assert graph.parameters["uri"] == Parameter("uri", "STRING", required=True)
    assert graph.parameters["spec"].default == {"a": [1, 0.5], "b": "x"}
    assert graph.parameters["epochs"].default == 3 and type(graph.parameters["epochs"].default) is int
    assert list(graph.tasks) == ["importer", "convert", "train", "train-2"], "each after all that it needs"

    importer, lists, first, second = graph.tasks.values()
    assert importer.component.executor == Importer(Argument("uri"), {"kind": "images"})
    assert importer.parameters == {"uri": Argument("uri")}
    assert lists.artifacts == {"images": Output("importer", "artifact")}
    assert lists.parameters == {"spec": Argument("spec")}
    assert lists.retry == Retry(3, 2.0, 3.0, 10.0) and not lists.cache and first.cache
    assert first.artifacts["annotations"] == Output("convert", "annotations")
    assert first.parameters == {"num_epochs": Argument("epochs")}
    assert first.component.parameters["dataset_name"].default == "GenericDataset"
    assert not first.component.artifacts["pretrained"].required
    assert second.parameters == {"spec": Constant({"n": 2})}
    assert second.after == {"importer", "convert", "train"}
    assert (first.timeout, second.timeout) == (None, 90.0)
    assert first.component.executor.command == ("depth_net-launch",)
    assert first.component.executor.args == ("train", "{{$}}")


def test_backoff_grows_to_its_limit():
    retry = Retry(5, backoff=2.0, factor=3.0, longest=10.0)
    assert [retry.delay(n) for n in (1, 2, 3)] == [2.0, 6.0, 10.0]


@dsl.component(base_image="python:3.11")
def lightweight(n: int) -> int:
    return n


def _condition():
    @dsl.pipeline(name="p")
    def p(n: int = 1):
        with dsl.If(n == 1):
            synthesize()

    return p


def _loop():
    @dsl.pipeline(name="p")
    def p():
        with dsl.ParallelFor([1, 2]) as n:
            synthesize(num_scenes=n)

    return p


def _nested():
    @dsl.pipeline(name="inner")
    def inner():
        synthesize()

    @dsl.pipeline(name="p")
    def p():
        inner()

    return p


def _exit_handler():
    @dsl.pipeline(name="p")
    def p():
        with dsl.ExitHandler(synthesize()):
            synthesize()

    return p


def _python_function():
    @dsl.pipeline(name="p")
    def p():
        lightweight(n=1)

    return p


def _root_artifact():
    @dsl.pipeline(name="p")
    def p(images: dsl.Input[dsl.Dataset]):
        convert(images=images)

    return p


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_condition, "task condition-1: .*conditions"),
        (_loop, "task for-loop-2: loops"),
        (_nested, "task inner: pipelines in pipelines"),
        (_exit_handler, "task exit-handler-1: pipelines in pipelines"),
        (_python_function, "task lightweight: Python-function components"),
        (_root_artifact, r"takes artifacts \(images\)"),
    ],
)
def test_what_can_not_be_run_is_refused_by_name(compile_to, make, message):
    with pytest.raises(GraphError, match=message):
        compile_to(make())


def test_files_that_are_no_pipeline(tmp_path):
    for name, text, message in (
        ("a", "x: 1", "no compiled pipeline"),
        ("b", "a: [", "no YAML"),
        ("c", "pipelineInfo: {name: x}\nroot: 3", "malformed PipelineSpec"),
        ("d", "", "no compiled pipeline"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(GraphError, match=message):
            load_pipeline(tmp_path / name)
    with pytest.raises(GraphError, match="No such file"):
        load_pipeline(tmp_path / "gone")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("STRING", "12", "12"),
        ("NUMBER_INTEGER", "12", 12),
        ("NUMBER_INTEGER", "1e1", None),
        ("NUMBER_INTEGER", "1.5", None),
        ("NUMBER_INTEGER", "true", None),
        ("NUMBER_DOUBLE", "1e-4", 1e-4),
        ("NUMBER_DOUBLE", "2", 2.0),
        ("NUMBER_DOUBLE", "much", None),
        ("BOOLEAN", "true", True),
        ("BOOLEAN", "1", None),
        ("LIST", "[1, a]", [1, "a"]),
        ("STRUCT", '{"a": {"b": [1.5]}}', {"a": {"b": [1.5]}}),
        ("STRUCT", "{a: {b: x y}}", {"a": {"b": "x y"}}),
        ("STRUCT", "[1]", None),
        ("STRUCT", "{", None),
    ],
)
def test_values_from_the_command_line(kind, text, value):
    parameter = Parameter("p", kind)
    if value is None:
        with pytest.raises(GraphError, match="parameter p"):
            parse(parameter, text)
    else:
        parsed = parse(parameter, text)
        assert parsed == value and type(parsed) is type(value)


def test_whole_doubles_of_protobuf_are_integers():
    assert typed(Parameter("p", "NUMBER_INTEGER"), 3.0) == 3
    assert typed(Parameter("p", "STRUCT"), {"a": 3.0})["a"].__class__ is int


def test_unknown_and_missing_arguments(compile_to):
    @dsl.pipeline(name="p")
    def p(uri: str, epochs: int = 1):
        dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset)

    graph = compile_to(p)
    assert graph.arguments({"uri": "x"}) == {"uri": "x", "epochs": 1}
    with pytest.raises(GraphError, match="unknown parameter epoch; did you mean epochs"):
        graph.arguments({"uri": "x", "epoch": 2})
    with pytest.raises(GraphError, match="without a value: uri"):
        graph.arguments({})
    with pytest.raises(GraphError, match="parameter epochs: an integer"):
        graph.arguments({"uri": "x", "epochs": "2"})


@pytest.mark.parametrize(("resources", "count"), [({}, 0), ({"accelerator": {"count": "2", "type": "x"}}, 2)])
def test_accelerators(compiled, resources, count):
    spec = pipeline({"a": container("")})
    spec["deploymentSpec"]["executors"]["exec-a"]["container"]["resources"] = resources
    assert load_pipeline(compiled(spec)).tasks["a"].component.executor.accelerators == count


def test_an_accelerator_count_from_a_parameter_is_refused(compiled):
    spec = pipeline({"a": container("")})
    limit = {"accelerator": {"resourceCount": "{{$.inputs.parameters['gpus']}}"}}
    spec["deploymentSpec"]["executors"]["exec-a"]["container"]["resources"] = limit
    with pytest.raises(GraphError, match=r"task a: the accelerator count .*gpus.* is no number"):
        load_pipeline(compiled(spec))
