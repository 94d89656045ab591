"""`depth_net plot`: what a run leaves becomes one line a figure, however often the run was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from matplotlib.axes import Axes
from torch.utils.tensorboard import SummaryWriter

from stereo_core.errors import DataError
from stereo_core.report.curves import plot, read_curves, read_runs
from stereo_core.run.status import StatusLog


def write_events(run: Path, number: int, points: dict[str, dict[int, float]]) -> Path:
    """One event file, begun `number` seconds after the first, as TensorBoard names them."""
    folder = run / "lightning_logs" / "version_1"
    before = {*folder.glob("events*")}
    with SummaryWriter(str(folder)) as writer:
        for tag, values in points.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step)
    (path,) = {*folder.glob("events*")} - before
    return path.rename(folder / f"events.out.tfevents.{1000 + number}.host.1.0")


def test_a_resumed_run_has_one_line(tmp_path):
    """The first process went on to step 49 after its last checkpoint, at 29; the second did 39 and 49 anew."""
    write_events(tmp_path, 0, {"val/epe": {0: 14.0}})
    write_events(tmp_path, 1, {"lr": {0: 1.0, 19: 2.0, 29: 3.0, 39: 9.0, 49: 9.0}, "val/epe": {19: 7.0, 45: 9.0}})
    write_events(tmp_path, 2, {"val/epe": {29: 6.0}})  # of the resumed checkpoint, made up for
    write_events(tmp_path, 3, {"lr": {39: 4.0, 59: 5.0}, "val/epe": {59: 5.0}})
    curves = read_curves(tmp_path)
    assert list(curves["lr"].items()) == [(0, 1.0), (19, 2.0), (29, 3.0), (39, 4.0), (59, 5.0)]
    assert list(curves["val/epe"].items()) == [(0, 14.0), (19, 7.0), (29, 6.0), (59, 5.0)]


def test_a_file_that_is_being_written_is_read_up_to_its_last_whole_record(tmp_path):
    path = write_events(tmp_path, 0, {"lr": {1: 1.0, 2: 2.0, 3: 3.0}})
    path.write_bytes(path.read_bytes()[:-5])
    write_events(tmp_path, 1, {}).write_bytes(b"")
    assert read_curves(tmp_path)["lr"] == {1: 1.0, 2: 2.0}


def write_status(run: Path, epochs: dict[int, float], initial: float | None = None) -> None:
    """status.json as training writes it: step at the epoch's end -> val/epe; train_loss is ten times that."""
    run.mkdir(parents=True, exist_ok=True)
    status = StatusLog(run)
    status.started("Starting Depth Net train.")
    if initial is not None:
        status.running("Eval metrics generated before training.", kpi={"epe": initial})
    for step, epe in epochs.items():
        status.running("Eval metrics generated.", kpi={"epe": epe})
        status.running("Training loop in progress", epoch=step // 10, step=step, step_time=0.5)
        status.running("Train metrics generated.", kpi={"train_loss": 10 * epe})


def test_status_json_serves_where_there_are_no_event_files(tmp_path):
    write_status(tmp_path, {10: 8.0, 20: 9.0, 30: 9.5}, initial=12.0)
    write_status(tmp_path, {20: 6.0, 30: 5.0})  # resumed at 10
    with (tmp_path / "status.json").open("a") as file:
        file.write('{"status": "RUNN')
    curves = read_curves(tmp_path)
    assert curves["val/epe"] == {0: 12.0, 10: 8.0, 20: 6.0, 30: 5.0}
    assert curves["train_loss"] == {10: 80.0, 20: 60.0, 30: 50.0} and curves["step_time"][30] == 0.5


def test_all_runs_below_a_folder_stand_in_one_picture(tmp_path):
    for trial in (10, 9):
        write_status(tmp_path / f"trial_{trial}" / "train", {10: 8.0, 20: trial / 2})
    (tmp_path / "evaluate").mkdir()
    StatusLog(tmp_path / "evaluate").success("done", kpi={"epe": 1.0})  # has metrics, and no steps
    assert [name for name, _ in read_runs(tmp_path)] == ["trial_9/train", "trial_10/train"]
    picture, names = plot(tmp_path)
    assert picture == tmp_path / "curves.png" and len(names) == 2
    pixels = cv2.imread(str(picture)).reshape(-1, 3)[:, ::-1].tolist()
    assert [31, 119, 180] in pixels and [255, 127, 14] in pixels and [44, 160, 44] not in pixels  # two lines' colours


def test_bad_pixels_are_in_per_cent_as_in_tables_and_their_legend_covers_no_curve(tmp_path, monkeypatch):
    drawn = []
    draw = Axes.plot

    def seen(axes, *args, **options):
        drawn.append(axes)
        return draw(axes, *args, **options)

    monkeypatch.setattr(Axes, "plot", seen)
    write_events(tmp_path, 0, {"val/bp1": {0: 0.75, 5: 0.25}, "val/d1": {0: 0.5, 5: 0.125}, "lr": {1: 0.75, 2: 0.5}})
    plot(tmp_path)
    by_title = {axes.get_title(): axes for axes in drawn}
    bad = by_title["validation: share of bad pixels (%)"]
    assert [list(line.get_ydata()) for line in bad.lines] == [[75.0, 25.0], [50.0, 12.5]]
    assert list(by_title["learning rate"].lines[0].get_ydata()) == [0.75, 0.5]
    assert bad.get_legend().get_window_extent().x0 >= bad.bbox.x1


def test_a_figure_with_one_point_has_no_panel(tmp_path):
    """A dot alone shows no course; the page's tables have its value."""
    write_status(tmp_path / "a", {10: 8.0})
    with pytest.raises(DataError, match="nothing to draw"):
        plot(tmp_path)
    write_status(tmp_path / "b", {10: 7.0})
    plot(tmp_path)
    two = cv2.imread(str(tmp_path / "curves.png")).shape
    write_status(tmp_path / "a", {10: 8.0, 20: 7.0}, initial=9.0)
    plot(tmp_path / "a")
    assert cv2.imread(str(tmp_path / "a" / "curves.png")).shape == two


def test_nothing_to_draw_is_said(tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"status": "STARTED", "message": "Starting Depth Net train."}))
    with pytest.raises(DataError, match="nothing to draw"):
        plot(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        plot(tmp_path / "runs")
    write_status(tmp_path, {10: 8.0, 20: 7.0})
    with pytest.raises(DataError, match=r"name it c\.png"):
        plot(tmp_path, tmp_path / "c.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
