"""A run's page: rows before and after training, columns that were measured, nothing else."""

from small_ir import container, pipeline

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun, Made
from stereo_core.orchestration.page import BOX, FILL, GAP, graph, metrics_table, write_page

METRICS, MODEL = {"schemaTitle": "system.Metrics"}, {"schemaTitle": "system.Model"}


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
        METRICS, "m", "", 10, {"epe": 1.25, "latency_median_ms": 8.5, "x": 4.0}
    )
    table = metrics_table(run.record)
    assert list(table.columns) == ["step", "epe", "latency_median_ms"]
    assert [tuple(row) for row in table.rows] == [
        ("train, untrained", 9.0, ""),
        ("train", 1.5, ""),
        ("trt", 1.25, 8.5),
    ]
    html = write_page(run.record).read_text()
    assert "train, untrained" in html and "1.25" in html and "77" not in html


def test_graph_names_steps_and_draws_an_arrow_a_need(compiled, tmp_path):
    steps = {"a": container("", ("out",)), "b<i>": container("", (), ("in",))}
    run = LocalRun(load_pipeline(compiled(pipeline(steps, {"b<i>": {"in": ("a", "out")}}))), {}, tmp_path / "run")
    run.tasks["a"].state = "failed"
    drawing = graph(run.record)
    assert drawing.count("<rect") == 2 and drawing.count("<path") == 1
    assert FILL["failed"] in drawing and "b&lt;i&gt;" in drawing and "<i>" not in drawing
    assert f'x="{BOX + GAP + 1}"' in drawing, "the second step stands to the right of the first"
