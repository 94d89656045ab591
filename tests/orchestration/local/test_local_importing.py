"""Imported data: known by content, and by the place where it should be."""

from pathlib import Path

import pytest
from kfp import compiler, dsl
from local_steps import states
from stereo_components import convert

from stereo_core.errors import UserError
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.local.importing import imported, source_of


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """importer -> convert."""

    @dsl.pipeline(name="imported")
    def importing(images_uri: str):
        images = dsl.importer(artifact_uri=images_uri, artifact_class=dsl.Dataset, metadata={"kind": "images"})
        spec = {"image_extension": ".png", "image_dir_pattern": ["left"], "right_dir_pattern": ["right"]}
        convert(images=images.output, spec=spec)

    path = tmp_path_factory.mktemp("imported") / "p.yaml"
    compiler.Compiler().compile(importing, str(path))
    return load_pipeline(path)


@pytest.fixture
def images(tmp_path):
    """A folder of images, and how one is added."""

    def add(name: str) -> str:
        for side in ("left", "right"):
            (tmp_path / "images" / side).mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / side / name).write_bytes(name.encode())
        return str(tmp_path / "images")

    return add


def test_an_importer_makes_an_artifact_of_what_is_there(graph, images, tmp_path):
    folder = images("0.png")
    made = imported(graph.tasks["importer"], {"uri": folder}, Digests(tmp_path / "digests.json"), tmp_path / "run")[
        "artifact"
    ]
    assert (made.path, made.bytes, made.metadata) == (folder, 2 * len("0.png"), {"kind": "images"})


@pytest.mark.parametrize("uri", ["/s3/bucket/x", "file:///s3/bucket/x", "s3://bucket/x"])
def test_a_uri_is_somewhere_on_this_machine(graph, uri):
    assert source_of(graph.tasks["importer"], {"uri": uri}) == (uri, Path("/s3/bucket/x"))


def test_a_file_uri_is_decoded_as_browsers_write_it(graph, images):
    """Else a folder with a blank in its name is "no such file"; and a relative one was taken from the wrong place."""
    folder = Path(images("0.png"))
    shared = folder.rename(folder.with_name("my data é%"))
    assert source_of(graph.tasks["importer"], {"uri": shared.as_uri()})[1] == shared
    assert source_of(graph.tasks["importer"], {"uri": shared.as_uri().replace("//", "//localhost")})[1] == shared
    assert source_of(graph.tasks["importer"], {"uri": "s3://b/a%20b"})[1] == Path("/s3/b/a%20b")
    with pytest.raises(UserError, match=r"file://data/kitti: names a machine, data; write"):
        source_of(graph.tasks["importer"], {"uri": "file://data/kitti"})


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("", r"^parameter images_uri: the URI is empty"),
        ("/gone", r"^parameter images_uri: /gone: no such file or folder$"),
        (
            "s3://bucket/x",
            r"^parameter images_uri: s3://bucket/x is in object storage, which is not mounted .*fetch_dataset",
        ),
    ],
)
def test_what_is_not_there_is_named(graph, tmp_path, uri, told):
    with pytest.raises(UserError, match=told):
        imported(graph.tasks["importer"], {"uri": uri}, Digests(tmp_path / "digests.json"), tmp_path / "run")


@pytest.mark.parametrize("place", ["images/run", "images"])
def test_a_run_does_not_write_into_the_data_that_it_imports(graph, images, tmp_path, place):
    """The data would be other data at each run, and its digest that of half-written files."""
    run = LocalRun(graph, {"images_uri": images("0.png")}, tmp_path / place)
    assert run.execute() == 2 and "contains the run folder" in run.tasks["importer"].message


def test_a_run_without_its_data_is_the_users_to_mend(graph, tmp_path):
    run = LocalRun(graph, {"images_uri": "/gone"}, tmp_path / "run")
    assert run.execute() == 2
    assert states(run) == {"importer": "failed", "convert": "skipped"}


def test_imported_images_are_known_by_content(graph, images, tmp_path):
    arguments = {"images_uri": images("0.png")}
    assert LocalRun(graph, arguments, tmp_path / "run").execute() == 0
    again = LocalRun(graph, arguments, tmp_path / "run")
    assert again.execute() == 0 and states(again)["convert"] == "reused"
    images("1.png")
    changed = LocalRun(graph, arguments, tmp_path / "run")
    assert changed.execute() == 0 and states(changed)["convert"] == "succeeded"
    lines = (tmp_path / "run/tasks/convert/annotations/test.txt").read_text().splitlines()
    assert sorted(lines) == ["left/0.png right/0.png", "left/1.png right/1.png"]
