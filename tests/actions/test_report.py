"""report: several evaluations on one page, nothing made up where a figure is missing."""

import json
import re

import pytest
from page_text import text_of

from stereo_core.actions import report
from stereo_core.errors import DataError, UserError
from stereo_core.run.perform import perform
from stereo_core.run.status import StatusLog, beginning
from stereo_core.spec import spec_from_dict


def results(folder, settings=None, **figures):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(figures | {"settings": settings or {"backend": "x"}}))
    return str(folder)


def run(tmp_path, **keys):
    return report.run(spec_from_dict("report", {"results_dir": str(tmp_path / "out")} | keys), None)


def rows(page):
    cells = [re.findall(r"<t[dh][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    return {(row[0], index): row[1:] for index, row in enumerate(cells)}


def test_figures_stand_side_by_side_and_as_differences_to_the_first(tmp_path):
    one = results(tmp_path / "fp32", epe=1.5, d1=0.25, latency_median_ms=80.0)
    two = results(tmp_path / "fp16", epe=1.75, d1=0.25, engine_bytes=1_000_000)
    outcome = run(tmp_path, results=[one, two], title="fp32 and fp16")
    page = text_of(outcome.artifacts["report"])
    assert outcome.kpi == {"fp32/epe": 1.5, "fp16/epe": 1.75}
    found = [[key[0], *cells] for key, cells in rows(page).items()]
    assert ["figure", "fp32", "fp16", "key"] in found
    assert ["EPE (px)", "1.500", "1.750", "epe"] in found
    time = ["time of a batch, median (ms)", "80", "", "latency_median_ms"]
    assert time in found, "the second was not timed: no figure"
    assert ["EPE (px)", "0.250"] in found, "the difference to the first"
    assert ["engine file (MB)", "", "1.0", "engine_bytes"] in found and ["engine file (MB)", "1.0"] not in found


def summary_of(page):
    """The first table's rows: texts, with * for the best of a column."""
    table = page[page.index("<table") : page.index("</table>")]
    rows = [re.findall(r"<t[dh]([^>]*)>([^<]*)<", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    return [["*" * (" best" in keys) + text for keys, text in row] for row in rows]


def test_the_summary_comes_first_with_units_and_the_best_of_each_column(tmp_path):
    """Raw keys and settings are folded away below."""
    one = results(tmp_path / "fp32", {"precision": "fp32", "valid_iters": 22}, epe=1.5, d1=0.25, bp1=0.5, images=6,
                  latency_median_ms=80.0, latency_batch=4)  # fmt: skip
    two = results(tmp_path / "fp16", {"precision": "fp16", "valid_iters": 8}, epe=1.75, d1=0.25, bp1=0.125, images=6,
                  latency_median_ms=8.21)  # fmt: skip
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    assert summary_of(page) == [
        ["evaluation", "EPE (px)", "D1 (%)", "BP-1 (%)", "time of a pair (ms)", "pairs", "iterations", "precision"],
        ["fp32", "*1.500", "25.00", "50.00", "20", "6", "22", "fp32"],
        ["fp16", "1.750", "25.00", "*12.50", "8.2", "6", "8", "fp16"],
    ]
    assert f'title="{one}"' in page, "the whole path"
    folded = page[page.index("<details>") :]
    assert "bp1" not in page[: page.index("<details>")] and "bp1" in folded and "setting" in folded
    assert "D1 is the share" in page[: page.index("<details>")]


def test_the_summary_says_how_the_errors_of_the_pairs_spread(tmp_path):
    """The mean alone hides that one pair is bad and the others are good."""
    one, two = (results(tmp_path / name, epe=2.0, images=3) for name in ("even", "outlier"))
    (tmp_path / "even" / "metrics.csv").write_text("path,epe\na,2\nb,2\nc,2\n")
    (tmp_path / "outlier" / "metrics.csv").write_text("path,epe\na,0.5\nb,0.5\nc,5\n")
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    assert [row[:4] for row in summary_of(page)] == [
        ["evaluation", "EPE (px)", "EPE, median over pairs (px)", "EPE, 95th percentile over pairs (px)"],
        ["even", "2.000", "2.000", "*2.000"],
        ["outlier", "2.000", "*0.500", "4.550"],
    ]


def test_evaluations_of_other_images_have_no_best(tmp_path):
    one, two = (results(tmp_path / str(images), epe=float(images), images=images) for images in (2, 3))
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    assert summary_of(page)[1:] == [["2", "2.000", "2", "x"], ["3", "3.000", "3", "x"]]


@pytest.mark.parametrize(
    ("epes", "shown"),
    [
        ((1.0, 1.004), ["1.000", "1.004"]),
        ((1.0, 1.004, 2.0), ["*1.000", "*1.004", "2.000"]),
        ((1.0, 1.006), ["*1.000", "1.006"]),
    ],
)
def test_figures_that_hardly_differ_are_equally_good(tmp_path, epes, shown):
    paths = [results(tmp_path / str(n), epe=epe) for n, epe in enumerate(epes)]
    page = text_of(run(tmp_path, results=paths).artifacts["report"])
    assert [row[1] for row in summary_of(page)[1:]] == shown


def test_a_metrics_file_serves_like_a_folder(tmp_path):
    path = tmp_path / "metrics"
    path.write_text(json.dumps({"epe": 2.0}))
    assert run(tmp_path, results=[str(path)], names=["tiny"]).kpi == {"tiny/epe": 2.0}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), ("[]", "no figures"), ('{"epe": "low"}', "no figures"), ("{", "no valid JSON")],
)
def test_bad_results_are_refused_by_name(tmp_path, content, said):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"results\.json: .*{said}"):
        run(tmp_path, results=[str(path)])


def test_names_and_results_belong_together(tmp_path):
    spec = spec_from_dict(
        "report",
        {"results_dir": str(tmp_path / "out"), "results": [results(tmp_path / "a", epe=1.0)], "names": ["a", "b"]},
    )
    assert perform("report", spec) == 2
    assert "2 names for 1 results" in (tmp_path / "out" / "status.json").read_text()


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["results/evaluate", "rb3/evaluate"], ["results", "rb3"]),
        (["x/fp32/evaluate/last", "x/fp16/evaluate/last"], ["fp32", "fp16"]),
        (["r/evaluate", "r/int8/evaluate"], ["r", "r/int8"]),
        (["a/evaluate", "b/evaluate", "c/trt"], ["a/evaluate", "b/evaluate", "c/trt"]),
        (["a/evaluate", "a/evaluate"], None),
    ],
)
def test_evaluations_of_one_name_are_told_apart(tmp_path, folders, names):
    paths = [results(tmp_path / f, epe=float(n)) for n, f in enumerate(dict.fromkeys(folders))]
    if names is None:
        assert list(run(tmp_path, results=paths * 2).kpi) == ["evaluate/epe", "evaluate-2/epe"]
        return
    found = run(tmp_path, results=paths).kpi
    assert [key.removeprefix(f"{tmp_path}/") for key in found] == [f"{name}/epe" for name in names]
    assert list(found.values()) == [float(n) for n in range(len(names))]
    assert list(run(tmp_path, results=paths, names=["same"] * len(paths)).kpi)[:2] == ["same/epe", "same-2/epe"]


@pytest.mark.parametrize(
    ("images", "counts", "other"),
    [(("a", "b"), (2, 2), False), (("a", "c"), (2, 2), True), (None, (2, 2), False), (None, (2, 3), True)],
)
def test_evaluations_of_other_images_draw_a_warning(tmp_path, caplog, images, counts, other):
    one, two = (results(tmp_path / name, epe=1.0, images=n) for name, n in zip(("one", "two"), counts, strict=True))
    (tmp_path / "one" / "metrics.csv").write_text("path,epe\na,1\nb,1\n")
    if images:
        (tmp_path / "two" / "metrics.csv").write_text("path,epe\n" + "".join(f"{i},1\n" for i in images))
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    said = "two: evaluated on other pairs than one"
    assert (said in caplog.text) == (said in page) == other


def test_evaluations_against_other_ground_truth_are_not_compared(tmp_path, caplog):
    """The same images with another dataset.max_disparity: a lower EPE means nothing."""
    one, two = (results(tmp_path / str(n), epe=epe, images=2, pixels=n) for n, epe in ((100, 2.0), (90, 1.0)))
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    assert "another number of pixels with valid ground truth than 100 (100)" in caplog.text
    assert summary_of(page)[2][1] == "1.000", "not marked as the best"


@pytest.mark.parametrize("end", ["FAILURE", "RUNNING"])
@pytest.mark.parametrize("verb", ["evaluate", "trt_evaluate"])
def test_figures_of_an_earlier_run_do_not_stand_for_the_last_one(tmp_path, end, verb):
    """The second evaluation in a folder fails or is killed: results.json is still the first one's."""
    one = results(tmp_path / "one", epe=1.0)
    status = StatusLog(tmp_path / "one")
    status.started(beginning(verb))
    status.success("done")
    assert run(tmp_path, results=[one]).kpi == {"one/epe": 1.0}
    status.started(beginning(verb))
    status.failure("the disk is full") if end == "FAILURE" else status.running("the disk is full")
    with pytest.raises(DataError, match=r"one/results\.json: the last evaluation .*the disk is full"):
        run(tmp_path, results=[one])
    status.started(beginning(verb))
    status.success("done")
    status.started(beginning("inference"))
    status.failure("another verb in the same folder")
    assert run(tmp_path, results=[one]).kpi == {"one/epe": 1.0}


def test_a_results_file_of_another_program_is_read_as_far_as_it_is_known(tmp_path):
    one = results(tmp_path / "one", epe=1.0, warnings="none")
    content = json.loads((tmp_path / "one" / "results.json").read_text()) | {"settings": "fast"}
    (tmp_path / "one" / "results.json").write_text(json.dumps(content))
    assert run(tmp_path, results=[one]).kpi == {"one/epe": 1.0}


@pytest.mark.parametrize("content", [b"name,epe\na,1\n", b"path,epe\na,x\n", b"path,epe\na\n"])
def test_a_table_of_images_that_cannot_be_read_is_named(tmp_path, content):
    one = results(tmp_path / "one", epe=1.0)
    (tmp_path / "one" / "metrics.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"one/metrics\.csv: damaged"):
        run(tmp_path, results=[one])


def test_what_evaluations_warned_of_stands_beside_their_figures(tmp_path):
    one = results(tmp_path / "one", epe=1.0, warnings=["images are scaled down"])
    two = results(tmp_path / "two", epe=2.0, warnings=[])
    page = text_of(run(tmp_path, results=[one, two]).artifacts["report"])
    assert '<p class="warn">one: images are scaled down</p>' in page
    assert 'class="warn"' not in text_of(run(tmp_path, results=[two]).artifacts["report"])


@pytest.mark.parametrize(
    ("batches", "of"), [((1, 1), "a pair"), ((4, 4), "a batch of 4"), ((1, 4), "a batch of 1 or 4")]
)
def test_a_latency_says_of_how_many_images_it_is(tmp_path, batches, of):
    paths = [results(tmp_path / f"r{n}", latency_median_ms=n + 1, latency_batch=b) for n, b in enumerate(batches)]
    found = [[key[0], *cells] for key, cells in rows(text_of(run(tmp_path, results=paths).artifacts["report"])).items()]
    name = f"time of {of}, median (ms)"
    assert [name, "1.0", "2.0", "latency_median_ms"] in found and [name, "1.0"] in found
