"""Pipelines in KFP's own DSL: conditions, loops and exit handlers over steps of one line of Python; and real steps."""

import sys
from typing import List  # noqa: UP035, as kfp wants it

from kfp import dsl
from stereo_components import convert, synthesize, train

LIBRARY = "import json, pathlib, sys; a = sys.argv[1:]; put = lambda p, t: pathlib.Path(p).write_text(t); "


def _run(code: str, *arguments) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="python:3", command=[sys.executable, "-c", LIBRARY + code], args=list(arguments))


@dsl.container_component
def measure(epe: float, name: str, out: dsl.Output[dsl.Dataset], found: dsl.OutputPath(float), of: dsl.OutputPath(str)):
    """Gives its parameters back as output parameters."""
    return _run("put(a[2], a[0]); put(a[3], a[1]); put(a[4], a[1])", epe, name, found, of, out.path)


@dsl.container_component
def say(text: str, out: dsl.Output[dsl.Dataset]):
    """Writes its text."""
    return _run("put(a[1], a[0])", text, out.path)


@dsl.container_component
def repeat(out: dsl.Output[dsl.Dataset], text: str = "default"):
    """Writes its text, or its default."""
    return _run("put(a[1], a[0])", text, out.path)


@dsl.container_component
def add(data: dsl.Input[dsl.Dataset], text: str, out: dsl.Output[dsl.Dataset]):
    """Writes what it was given and its text."""
    return _run("put(a[2], open(a[0]).read() + a[1])", data.path, text, out.path)


@dsl.container_component
def fail(code: int, out: dsl.Output[dsl.Dataset]):
    """Fails."""
    return _run("put(a[1], ''); sys.exit(int(a[0]))", code, out.path)


@dsl.container_component
def go_on(data: dsl.Input[dsl.Dataset], out: dsl.Output[dsl.Dataset]):
    """Is cut off the first time, and goes on with what it left then."""
    code = (
        "left = pathlib.Path(a[1]).with_name('checkpoint'); again = left.exists(); left.touch(); again or sys.exit(1)"
    )
    return _run(f"{code}; put(a[1], open(a[0]).read())", data.path, out.path)


@dsl.container_component
def tell(status: dsl.PipelineTaskFinalStatus, out: dsl.Output[dsl.Dataset], to: str = "all"):
    """Writes the status it was given."""
    return _run("put(a[2], json.dumps([json.loads(a[0]), a[1]]))", status, to, out.path)


@dsl.container_component
def gather(many: dsl.Input[List[dsl.Dataset]], names: list, spec: dict, out: dsl.Output[dsl.Dataset]):  # noqa: UP006
    """Writes the texts of many artifacts, and the parameters it was given."""
    message = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
    code = (
        "i = json.loads(a[0])['inputs']; texts = [open(x['uri']).read() for x in i['artifacts']['many']['artifacts']]; "
        "put(a[1], json.dumps([texts, i['parameterValues']['names'], i['parameterValues']['spec']]))"
    )
    return _run(code, message, out.path)


@dsl.pipeline(name="branches")
def branches(epe: float = 0.5, limit: float = 1.0, name: str = "x", flag: bool = True):
    """If, Elif and Else on an output parameter; a condition inside; what follows."""
    found = measure(epe=epe, name=name)
    with dsl.If(found.outputs["found"] <= limit):
        good = say(text="good")
        with dsl.If(flag == True):  # noqa: E712
            add(data=good.outputs["out"], text=" and flag")
    with dsl.Elif(found.outputs["of"] == "it's && (so)"):
        named = say(text="named")
    with dsl.Else():
        bad = say(text="bad")
    one = dsl.OneOf(good.outputs["out"], named.outputs["out"], bad.outputs["out"])
    add(data=one, text="!")


@dsl.pipeline(name="inner")
def inner(text: str, end: str = ".") -> dsl.Dataset:
    """Two steps, one after the other."""
    return add(data=say(text=text).outputs["out"], text=end).outputs["out"]


@dsl.pipeline(name="rounds")
def rounds(words: list = ["a", "b"], rows: list = [{"of": "x"}, {"of": "y"}], key: str = "k"):  # noqa: B006
    """Loops over list parameters, with a condition and a pipeline inside; what they made is collected."""
    with dsl.ParallelFor(words, parallelism=1) as word:
        made = inner(text=f"{key}={word}")
        with dsl.If(word == "b"):
            add(data=made.output, text="only b")
    with dsl.ParallelFor(rows) as row:
        found = measure(epe=1.5, name=row.of)
    names = dsl.Collected(found.outputs["of"])
    gather(many=dsl.Collected(found.outputs["out"]), names=names, spec={"key": key, "inside": {"is": f"<{key}>"}})


@dsl.pipeline(name="watched")
def watched(code: int = 0):
    """An exit handler around two steps, the second of which may fail, and one that does not mind."""
    with dsl.ExitHandler(tell(to="me")):
        first = say(text="first")
        with dsl.If(code != 0):
            broken = fail(code=code).after(first)
            add(data=broken.outputs["out"], text="never")


@dsl.pipeline(name="trained")
def trained(code: int = 0):
    """Two steps after one that may fail."""
    first = fail(code=code)
    add(data=first.outputs["out"], text="x")
    go_on(data=first.outputs["out"])


SPEC = {"image_dir_pattern": ["left/rgb"], "right_dir_pattern": ["right/rgb"], "image_extension": ".png"}


@dsl.pipeline(name="data")
def data(scenes: int = 2, spec: dict = {}):  # noqa: B006
    """synthesize -> convert, the real steps; SPEC is a spec that fits."""
    images = synthesize(num_scenes=scenes, height=64, width=96, max_disparity=16)
    convert(images=images.outputs["images"], spec=spec)


TRAIN = {
    "model": {"preset": "tiny", "train_iters": 1, "valid_iters": 1, "stereo_backbone": {"allow_random_backbone": True}},
    "dataset": {"max_disparity": 64, "train_dataset": {"workers": 0, "augmentation": {"crop_size": [64, 96]}}},
}


@dsl.pipeline(name="training")
def training(epochs: int = 3):
    """synthesize -> convert -> train, the real steps."""
    images = synthesize(num_scenes=4, height=64, width=96, max_disparity=16).outputs["images"]
    lists = convert(images=images, spec=SPEC | {"depth_dir_pattern": ["left/disparity"], "split_ratio": 0.5})
    annotations = lists.outputs["annotations"]
    train(images=images, annotations=annotations, dataset_name="FSD", num_epochs=epochs, spec=TRAIN)
