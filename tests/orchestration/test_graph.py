"""PipelineSpec IR -> graph: what is read is right, what can not be run is refused by name."""

import json
from pathlib import Path
from typing import List  # noqa: UP035, as kfp wants it

import pytest
from kfp import compiler, dsl, kubernetes
from small_ir import container, pipeline
from stereo_components import convert, train

from stereo_core.orchestration.dag import (
    Argument,
    Collected,
    Comparison,
    Constant,
    Filled,
    FinalStatus,
    GraphError,
    Importer,
    OneOf,
    Output,
    Parameter,
    Retry,
    parse,
)
from stereo_core.orchestration.graph import load_pipeline, read_pipeline, unrolled


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


@dsl.container_component
def measure(of: str, epe: dsl.OutputPath(float), name: dsl.OutputPath(str), out: dsl.Output[dsl.Dataset]):
    return dsl.ContainerSpec(image="python:3", command=["true"], args=[of, epe, name, out.path])


@dsl.container_component
def use(text: str, out: dsl.Output[dsl.Dataset], data: dsl.Input[dsl.Dataset] = None, n: int = 1):
    return dsl.ContainerSpec(image="python:3", command=["true"], args=[text, out.path])


@dsl.container_component
def tell(status: dsl.PipelineTaskFinalStatus, to: str = "all"):
    return dsl.ContainerSpec(image="python:3", command=["true"], args=[status, to])


@dsl.container_component
def gather(many: dsl.Input[List[dsl.Dataset]], names: list):  # noqa: UP006
    return dsl.ContainerSpec(image="python:3", command=["true"], args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])


def test_conditions_become_flat(compile_to):
    @dsl.pipeline(name="p")
    def p(limit: float = 1.0, n: int = 1, flag: bool = True):
        found = measure(of="x")
        with dsl.If(found.outputs["epe"] <= limit):
            first = use(text="good")
            with dsl.If(flag == True):  # noqa: E712
                use(text="inside").after(first)
        with dsl.Elif(found.outputs["name"] == "it's && (so)"):
            second = use(text="named")
        with dsl.Else():
            third = use(text="bad")
        last = use(text="z", data=dsl.OneOf(*(task.outputs["out"] for task in (first, second, third))))
        with dsl.If(n > 2):
            use(text="alone")
        use(text="after").after(last)

    tasks = compile_to(p).tasks
    good = Comparison(Output("measure", "epe"), "<=", Argument("limit"), False, "measure-epe <= limit")
    assert tasks["use"].when == (good,) and tasks["use"].after == {"measure"}
    flag = Comparison(Argument("flag"), "==", Constant(True), False, "flag == true")
    assert tasks["use-2"].when == (good, flag) and tasks["use-2"].after == {"measure", "use"}
    worse, named = tasks["use-3"].when
    assert worse.negated and (worse.left, worse.right) == (good.left, good.right)
    assert (named.right, named.negated) == (Constant("it's && (so)"), False)
    assert [test.negated for test in tasks["use-4"].when] == [True, True]
    assert tasks["use-5"].artifacts == {"data": OneOf(tuple(Output(f"use{n}", "out") for n in ("", "-3", "-4")))}
    assert tasks["use-5"].when == () and tasks["use-5"].after == {"use", "use-2", "use-3", "use-4"}
    assert tasks["use-6"].when == (Comparison(Argument("n"), ">", Constant(2), False, "int(n) > 2"),)
    assert tasks["use-7"].when == () and tasks["use-7"].after == {"use-5"}


def test_what_depends_on_a_condition_takes_it_over(compile_to, compiled):
    @dsl.pipeline(name="p")
    def p(n: int = 1):
        with dsl.If(n == 1):
            measure(of="x")
        use(text="y")

    spec = compile_to(p).spec
    spec["root"]["dag"]["tasks"]["use"]["dependentTasks"] = ["condition-1"]
    tasks = load_pipeline(compiled(spec)).tasks
    assert tasks["use"].when == tasks["measure"].when != () and tasks["use"].after == {"measure"}


def test_loops_stand_there_once_for_each_item(compile_to):
    @dsl.pipeline(name="p")
    def p(words: list = ["a", "b"], k: str = "key"):  # noqa: B006
        with dsl.ParallelFor([{"of": "x", "n": "1"}, {"of": "y", "n": "2"}], parallelism=1) as item:
            found = measure(of=item.of)
            inner = use(text=item.n, data=found.outputs["out"])
        with dsl.ParallelFor(words) as word:
            use(text=f"{word} {k}")
            with dsl.ParallelFor([3, 4]) as number:
                use(text="x", n=number)
        gather(many=dsl.Collected(inner.outputs["out"]), names=dsl.Collected(found.outputs["name"]))

    graph = compile_to(p)
    first, second = "for-loop-2-0-", "for-loop-2-1-"
    tasks = graph.tasks
    assert tasks[first + "measure"].parameters == {"of": Constant("x")} and not tasks[first + "measure"].behind
    assert tasks[second + "measure"].behind == {first + "measure", first + "use"}, "one round at a time"
    assert tasks[second + "use"].artifacts == {"data": Output(second + "measure", "out")}
    assert tasks[second + "use"].parameters == {"text": Constant("2")}
    many = Collected((Output(first + "use", "out"), Output(second + "use", "out")))
    assert tasks["gather"].artifacts == {"many": many} and tasks["gather"].component.artifacts["many"].many
    assert tasks["gather"].after >= {first + "use", second + "use"}

    assert graph.loops == {"words"}
    text = tasks["for-loop-3-1-use-2"].parameters["text"]
    assert isinstance(text, Filled) and list(text.inputs.values()) == [Argument("k"), Constant("b")]
    assert [tasks[f"for-loop-3-1-for-loop-5-{i}-use-3"].parameters["n"].value for i in (0, 1)] == [3, 4]
    other = unrolled(graph, {"words": ["c"]}).tasks
    assert (
        len(other) == len(tasks) - 3 and Constant("c") in other["for-loop-3-0-use-2"].parameters["text"].inputs.values()
    )
    assert not [name for name in unrolled(graph, {"words": []}).tasks if name.startswith("for-loop-3")]


def test_an_exit_handler_waits_for_all_however_it_ends(compile_to):
    @dsl.pipeline(name="p")
    def p():
        with dsl.ExitHandler(tell(to="me")):
            use(text="y", data=measure(of="x").outputs["out"])

    task = compile_to(p).tasks["tell"]
    assert task.exit and task.after == frozenset() and task.behind == {"measure", "use"}
    assert task.parameters == {"status": FinalStatus("exit-handler-1", ("measure", "use")), "to": Constant("me")}


def test_ignored_failures_are_waited_for(compile_to):
    @dsl.pipeline(name="p")
    def p():
        tell(to="x").after(measure(of="x")).ignore_upstream_failure()

    task = compile_to(p).tasks["tell"]
    assert (task.after, task.behind, task.exit) == (frozenset(), {"measure"}, False)


def test_a_pipeline_in_a_pipeline(compile_to):
    @dsl.pipeline(name="inner")
    def inner(word: str, n: int = 2) -> dsl.Dataset:
        return use(text="last", n=n, data=use(text=word).outputs["out"]).outputs["out"]

    @dsl.pipeline(name="p")
    def p(word: str = "a"):
        made = inner(word=word).after(use(text="before"))
        inner(word="b", n=3)
        use(text="end", data=made.output)

    tasks = compile_to(p).tasks
    assert tasks["inner-use"].parameters == {"text": Argument("word")} and tasks["inner-use"].after == {"use"}
    assert tasks["inner-use-2"].parameters["n"] == Constant(2) and tasks["inner-use-2"].after == {"inner-use"}
    assert tasks["inner-2-use-2"].parameters["n"] == Constant(3)
    assert tasks["use-2"].artifacts == {"data": Output("inner-use-2", "out")}


def _loop_over_an_output():
    @dsl.container_component
    def numbers(items: dsl.OutputPath(list)):
        return dsl.ContainerSpec(image="python:3", command=["true"], args=[items])

    @dsl.pipeline(name="p")
    def p():
        with dsl.ParallelFor(numbers().output) as word:
            use(text=word)

    return p


def _item_without():
    @dsl.pipeline(name="p")
    def p(rows: list = [{"a": "x"}, {"b": "y"}]):  # noqa: B006
        with dsl.ParallelFor(rows) as row:
            use(text=row.a)

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
        (_loop_over_an_output, "task for-loop-1: a loop needs a list that is known before the run"),
        (
            _item_without,
            "task for-loop-1-1-use: parameter text uses 'a' of the loop item, but this item lacks it: {'b': 'y'}",
        ),
        (_python_function, "task lightweight: Python-function components"),
        (_root_artifact, r"takes artifacts \(images\)"),
    ],
)
def test_what_can_not_be_run_is_refused_by_name(compile_to, make, message):
    with pytest.raises(GraphError, match=message):
        compile_to(make())


def _block(**task) -> str:
    """A pipeline in a pipeline with one cached step."""
    spec = pipeline({"say": container("print()", cachingOptions={"enableCache": True})})
    spec["components"]["comp-inner"] = {"dag": spec["root"]["dag"]}
    inner = {"componentRef": {"name": "comp-inner"}, "taskInfo": {"name": "inner"}, **task}
    spec["root"] = {"dag": {"tasks": {"inner": inner}}}
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("options", "cached"), [(None, True), ({"enableCache": True}, True), ({"enableCache": False}, False), ({}, False)]
)
def test_a_block_that_is_not_cached_has_no_cached_step(options, cached):
    """False is left out by protobuf, so that options without a value say no."""
    task = {} if options is None else {"cachingOptions": options}
    [step] = read_pipeline(_block(**task), Path("p.yaml")).tasks.values()
    assert step.cache == cached


def test_what_is_wrong_in_a_block_is_said_of_its_task():
    """An output of a step that it has not; a secret whose name is no parameter."""
    spec = json.loads(_block())
    chosen = {"valueFromParameter": {"producerSubtask": "say", "outputParameterKey": "epe"}}
    spec["components"]["comp-inner"]["dag"]["outputs"] = {"parameters": {"epe": chosen}}
    with pytest.raises(GraphError, match=r"task inner: .*epe"):
        read_pipeline(json.dumps(spec), Path("p.yaml"))
    name = {"secretNameParameter": {"componentInputParameter": "x"}}
    platform = {"deploymentSpec": {"executors": {"exec-say": {"imagePullSecret": [name]}}}}
    text = f"{_block()}\n---\n{json.dumps({'platforms': {'kubernetes': platform}})}"
    with pytest.raises(
        GraphError, match=r"task inner-say, imagePullSecret.* uses a pipeline parameter x that does not"
    ):
        read_pipeline(text, Path("p.yaml"))


def test_a_loop_over_artifacts_is_refused():
    loop = {"artifactIterator": {"itemInput": "one", "items": {"inputArtifact": "many"}}}
    with pytest.raises(GraphError, match="task inner: loops over artifacts are not supported"):
        read_pipeline(_block(**loop), Path("p.yaml"))


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def test_files_that_are_no_pipeline(tmp_path):
    for name, text, message in (
        ("a", "x: 1", "not a compiled pipeline"),
        ("b", "a: [", "not valid YAML"),
        ("c", "pipelineInfo: {name: x}\nroot: 3", "malformed PipelineSpec"),
        ("d", "", "not a compiled pipeline"),
        ("e", "pipelineInfo: {name: {a: b}}\nroot: {dag: {tasks: {}}}", "pipelineInfo.name is not a text"),
        ("f", BOMB, "not valid YAML: .* far too large"),
        ("g", "a: &a [*a]", "not valid YAML: .* infinite"),
        (
            "h",
            "pipelineInfo: {name: x}\nroot: {dag: {tasks: {t: {componentRef: {name: c}}}}}\n"
            "components: {c: {dag: {tasks: {t: {componentRef: {name: c}}}}}}",
            r"malformed PipelineSpec \(RecursionError",
        ),
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
        ("NUMBER_INTEGER", "010", 10),
        ("NUMBER_INTEGER", "1_0", None),
        ("NUMBER_INTEGER", "1e1", 10),
        ("NUMBER_INTEGER", "1.5", None),
        ("NUMBER_INTEGER", "true", None),
        ("NUMBER_DOUBLE", "1e-4", 1e-4),
        ("NUMBER_DOUBLE", "2", 2.0),
        ("NUMBER_DOUBLE", "much", None),
        ("BOOLEAN", "true", True),
        ("BOOLEAN", "1", None),
        ("BOOLEAN", "on", None),
        ("LIST", "[1:30, 1.10, {a: 2024-01-01}]", ["1:30", "1.10", {"a": "2024-01-01"}]),
        ("STRUCT", "{a: 1, a: 2}", None),
        ("STRUCT", "{a: !!timestamp 2024-01-01}", None),
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


def test_whole_doubles_of_protobuf_are_integers(compiled):
    """protobuf's Struct knows doubles alone: 3.0 in the file, at any depth, is the integer that the author wrote."""
    spec = pipeline({"a": container("")})
    spec["root"]["inputDefinitions"] = {
        "parameters": {
            "count": {"parameterType": "NUMBER_INTEGER", "defaultValue": 3.0},
            "spec": {"parameterType": "STRUCT", "defaultValue": {"a": [3.0, 0.5]}},
            "rate": {"parameterType": "NUMBER_DOUBLE", "defaultValue": 3.0},
        }
    }
    values = load_pipeline(compiled(spec)).arguments({})
    assert values == {"count": 3, "spec": {"a": [3, 0.5]}, "rate": 3.0}
    assert [type(values["count"]), type(values["spec"]["a"][0]), type(values["rate"])] == [int, int, float]


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
    with pytest.raises(GraphError, match="parameter epochs: expected an integer"):
        graph.arguments({"uri": "x", "epochs": "2"})


@pytest.mark.parametrize(("resources", "count"), [({}, 0), ({"accelerator": {"count": "2", "type": "x"}}, 2)])
def test_accelerators(compiled, resources, count):
    spec = pipeline({"a": container("")})
    spec["deploymentSpec"]["executors"]["exec-a"]["container"]["resources"] = resources
    assert load_pipeline(compiled(spec)).tasks["a"].component.executor.accelerators == count


@pytest.mark.parametrize("count", ["{{$.inputs.parameters['gpus']}}", "²", "9" * 5000])
def test_an_accelerator_count_that_is_no_number_is_refused(compiled, count):
    spec = pipeline({"a": container("")})
    limit = {"accelerator": {"resourceCount": count}}
    spec["deploymentSpec"]["executors"]["exec-a"]["container"]["resources"] = limit
    with pytest.raises(GraphError, match=r"task a: the accelerator count .* is not a number"):
        load_pipeline(compiled(spec))
