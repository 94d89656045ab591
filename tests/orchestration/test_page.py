"""A run's page: rows before and after training, columns that were measured, nothing else."""

import re

from page_text import text_of
from small_ir import container, pipeline

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.page import BOX, FILL, GAP, graph, metrics_table, write_page
from stereo_core.orchestration.record import Made
from stereo_core.run.status import StatusLog

METRICS, MODEL, HTML = ({"schemaTitle": f"system.{kind}"} for kind in ("Metrics", "Model", "HTML"))


def test_metrics_side_by_side(compiled, tmp_path):
    run = LocalRun(
        load_pipeline(compiled(pipeline({n: container("") for n in ("train", "trt")}))), {}, tmp_path / "run"
    )
    assert metrics_table(run.record) is None
    for task in run.tasks.values():
        task.state = "succeeded"
    train = {"initial_epe": 9.0, "epe": 1.5, "kind": "metrics", "bytes": 10}
    run.tasks["train"].artifacts["metrics"] = Made(METRICS, "m", "", 10, train)
    run.tasks["train"].artifacts["checkpoint"] = Made(MODEL, "c", "", 10, {"epe": 77.0})
    run.tasks["trt"].artifacts["metrics"] = Made(
        METRICS,
        "m",
        "",
        10,
        {"epe": 1.25, "bp1": 0.25, "d1": 0.125, "latency_median_ms": 34.0, "latency_batch": 4, "x": 4.0},
    )
    table = metrics_table(run.record)
    assert list(table.columns) == ["step", "EPE (px)", "D1 (%)", "BP-1 (%)", "time of a pair (ms)"]
    assert [tuple(row) for row in table.rows] == [
        ("train, before", 9.0, "", "", ""),
        ("train", 1.5, "", "", ""),
        ("trt", 1.25, 12.5, 25.0, 8.5),
    ]
    html = write_page(run.record).read_text()
    assert "train, before" in html and "1.25" in html and "77" not in html


def test_rows_of_steps_and_artifacts(compiled, tmp_path):
    run = LocalRun(load_pipeline(compiled(pipeline({n: container("") for n in ("a", "b")}))), {}, tmp_path / "run")
    first, second = run.tasks["a"], run.tasks["b"]
    first.state, first.started, first.seconds = "succeeded", "2031-02-03T04:05:06.789+00:00", 12345.6
    first.attempts, first.exit_code = 2, 0
    first.artifacts["model"] = Made(MODEL, "tasks/a/model", "0123456789abcdef", 3_400_000, {})
    second.state, second.seconds, second.attempts, second.exit_code = "failed", 1.25, 1, 2
    second.message = "no <file>"
    html = text_of(write_page(run.record))
    lines = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]
    assert [line for line in lines if line] == [
        ["a", "succeeded", "", "", "2031-02-03 04:05:06", "12345.6", "2", "0", ""],
        ["b", "failed", "", "", "", "1.2", "1", "2", "no &lt;file&gt;"],
        ["a", "model", "3.4 MB", "0123456789ab", "tasks/a/model"],
    ]


def test_a_warning_of_several_steps_stands_once(compiled, tmp_path):
    run = LocalRun(load_pipeline(compiled(pipeline({n: container("") for n in "abc"}))), {}, tmp_path / "run")
    for name, texts in {"a": ["dark", "small"], "b": ["dark"], "c": []}.items():
        run.tasks[name].attempts = 1
        folder = run.record.place(name) / "results"
        folder.mkdir(parents=True)
        status = StatusLog(folder)
        for text in texts:
            status.warning(text)
    html = write_page(run.record).read_text()
    assert re.findall(r'class="warn">([^<]*)<', html) == ["a, b: dark", "a: small"]


def test_graph_names_steps_and_draws_an_arrow_a_need(compiled, tmp_path):
    steps = {"a": container("", ("out",)), "b<i>": container("", (), ("in",))}
    run = LocalRun(load_pipeline(compiled(pipeline(steps, {"b<i>": {"in": ("a", "out")}}))), {}, tmp_path / "run")
    run.tasks["a"].state = "failed"
    drawing = graph(run.record)
    assert drawing.count("<rect") == 2 and drawing.count("<path") == 1
    assert FILL["failed"] in drawing and "b&lt;i&gt;" in drawing and "<i>" not in drawing
    assert f'x="{BOX + GAP + 1}"' in drawing, "the second step stands to the right of the first"


def test_the_page_of_a_step_opens_as_a_page_and_the_step_is_still_reused(compiled, tmp_path):
    """A browser takes `report` for text, as it has no suffix. What is added for it must not make the step run again."""
    code = "import sys; open(sys.argv[1], 'w').write('<h1>T</h1>'); print('said')"
    steps = pipeline({"a": container(code, ("out",))})
    steps["components"]["comp-a"]["outputDefinitions"]["artifacts"]["out"] = {"artifactType": HTML}

    def run():
        one = LocalRun(load_pipeline(compiled(steps)), {}, tmp_path / "run")
        assert one.execute() == 0
        return one, re.findall(r'<a href="(.*?)">(.*?)</a>', text_of(write_page(one.record)))

    one, links = run()
    page, log = "tasks/a/out.html", "tasks/a/log.txt"
    assert links == [(page, "page"), (log, "log"), (page, "tasks/a/out")]
    assert (one.folder / page).read_text() == "<h1>T</h1>" and (one.folder / log).read_text() == "said\n"
    again, links_again = run()
    assert again.tasks["a"].state == "reused" and links_again == links
