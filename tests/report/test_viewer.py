"""What pages show of pairs: values, which pairs, and how those of several runs come together."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest

from stereo_core.data.calibration import Calibration
from stereo_core.report.html import Table, figure, images_table, metrics_tables, page, pairs_of
from stereo_core.report.names import headings, short_names
from stereo_core.report.viewer import FIRST, STEPS, WORST, Chosen, view
from stereo_core.report.views import CURVE_PX, fitting, read_views, side_by_side, write_views

CAMERA = Calibration(100.0, 0.5, doffs=10.0).of_size(60, 80)


@pytest.fixture
def disparity():
    values = np.linspace(1, 40, 60 * 80, dtype=np.float32).reshape(60, 80)
    values[0, 0] = np.inf
    return values


def made(disparity, name="a<b", **keys):
    return view(name, np.zeros((*disparity.shape, 3), np.uint8), disparity, **keys)


def values(data):
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    return (256 * picture[..., 0] + picture[..., 1]) / STEPS


def test_values_under_the_pointer_are_the_disparity(disparity):
    read = values(made(disparity).values)
    np.testing.assert_allclose(read.ravel()[1:], disparity.ravel()[1:], atol=0.5 / STEPS)
    assert read[0, 0] == 0


def test_large_pairs_are_reduced_and_keep_their_px():
    shown = made(np.full((1500, 2000), 321.5, np.float32))
    assert (shown.width, shown.height, shown.full_width) == (1024, 768, 2000)
    assert (values(shown.values) == 321.5).all()


def test_errors_count_where_there_is_ground_truth():
    prediction = np.full((10, 10), 20.0, np.float32)
    truth = np.full((10, 10), np.nan, np.float32)
    truth[:5], truth[5:8] = 20.0, 24.0
    shown = made(prediction, truth_HW=truth)
    assert shown.epe == pytest.approx(3 * 4 / 8)
    at = round(4 / CURVE_PX * (len(shown.curve) - 1))
    assert shown.curve[0] == shown.curve[at - 1] == pytest.approx(5 / 8) and shown.curve[at] == shown.curve[-1] == 1
    assert (values(shown.truth)[8:] == 0).all()
    assert made(prediction, truth_HW=np.zeros_like(truth)).epe is None


def test_the_first_pairs_and_the_worst_are_shown(disparity):
    """In whatever parts the data came; a pair without a figure is none of the worst."""
    epes = [1.0, 9.0, 2.0, 3.0, 1.5, 8.0, float("nan"), 7.0, 0.5, 6.0, 5.0, 4.0]
    one = made(disparity[:4, :4])
    parts = [Chosen(), Chosen()]
    for index, epe in enumerate(epes):
        parts[index % 2].offer(index, epe, partial(replace, one, name=str(index)))
    whole = Chosen.of(parts[0].found + parts[1].found)
    names = [shown.name for shown in whole.views]
    assert names == ["0", "1", "2", "3", "5", "7", "9", "10"] and len(names) == FIRST + WORST


def test_pairs_of_several_runs_stand_side_by_side(disparity, tmp_path):
    truth = disparity[:8, 1:9] + 1
    good, bad = made(truth, truth_HW=truth), made(truth + 5, truth_HW=truth)
    runs = {
        "a": [replace(good, name="p"), replace(good, name="q"), replace(bad, name="only")],
        "b": [replace(good, name="p"), replace(bad, name="q")],
        "inference": [replace(good, name=name, truth=None, epe=None) for name in ("p", "q")],
    }
    groups = side_by_side(runs)
    assert [(group.name, list(group.views)) for group in groups] == [("q", ["a", "b"]), ("p", ["a", "b"])]
    assert fitting(groups, groups[0].bytes) == groups[:1] == fitting(groups, 1)
    runs["other data"] = [replace(bad, name=name, left="of another scene") for name in ("p", "r")]
    found = [(group.name, list(group.views)) for group in side_by_side(runs)]
    others = ["other data"]
    assert found == [("q", ["a", "b"]), ("p", others), ("p", ["a", "b"]), ("r", others)], "p of either is another pair"
    write_views(tmp_path / "views.json", runs["b"])
    assert read_views(tmp_path / "views.json") == runs["b"]
    (tmp_path / "views.json").write_text('[{"name": "of an older release"}]')
    assert read_views(tmp_path / "views.json") == read_views(tmp_path / "absent.json") == []


def test_images_are_listed_worst_first_with_links_to_their_pairs(disparity, tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "path,epe,d1\ns3://b/x/1.png,1.5,0.125\ns3://b/x/y/2.png,2.5,0\ns3://b/x/3.png,nan,0\n"
    )
    groups = side_by_side({"": [made(disparity, path="s3://b/x/y/2.png")]})
    pairs = pairs_of(tmp_path)
    (table,) = images_table({"": pairs}, groups)
    assert table.title == "Pairs below s3://b/x/" and table.columns == ("left image", "EPE (px)", "D1 (%)")
    assert [row[0] for row in table.rows] == [("y/2.png", "#pair-1"), "1.png", "3.png"]
    assert table.rows[1][1:] == [1.5, 12.5]
    assert images_table({"": pairs_of(tmp_path / "absent")}, groups) == []
    (table,) = images_table({"one": pairs, "two": pairs}, groups)
    assert table.columns == ("left image", "EPE (px) one", "EPE (px) two") and table.rows[0][1:] == [2.5, 2.5]


def test_accuracy_is_a_table_of_kinds_and_metrics_in_their_units():
    figures = {"epe": 1.5, "d1": 0.125, "epe_pixel": 2.0, "model_bytes": 9_662_378, "x": 7}
    accuracy, others = metrics_tables(figures, {"the only pair": {"epe": 1.5}})
    assert accuracy.columns == ("kind", "EPE (px)", "D1 (%)", "BP-1 (%)", "BP-2 (%)", "BP-3 (%)", "RMSE (px)")
    (one, *means, _, _, _, _), (all_pixels, epe, missing, *_) = accuracy.rows
    assert (one, means) == ("mean over pairs", [1.5, 12.5]) and (all_pixels, epe) == ("over all pixels", 2.0)
    assert figure(missing) == "", "no figure is made up"
    assert others.rows == [("model file (MB)", pytest.approx(9.662378)), ("x", 7)]
    assert [table.title for table in metrics_tables({"x": 1.0}, {})] == ["Figures"]


def test_a_figure_keeps_its_unit_after_the_name_of_its_run_and_small_ones_their_digits():
    (table,) = metrics_tables({"engine/epe": 1.5, "check_mean_abs_difference_px": 1.9e-06, "x/y": 2.0}, {})
    assert [(name, figure(value)) for name, value in table.rows] == [
        ("engine: EPE (px)", "1.500"),
        ("mean difference from PyTorch (px)", "1.9e-06"),
        ("x/y", "2"),
    ]


def test_one_pair_that_is_far_worse_than_the_rest_moves_the_mean_but_not_the_median():
    epes = [*(0.5 + n / 100 for n in range(20)), 60.0, float("nan")]
    (accuracy,) = metrics_tables({"epe": float(np.nanmean(epes))}, {str(n): {"epe": one} for n, one in enumerate(epes)})
    (_, mean, *_), (middle, median, no_d1, *_), (end, most, *_) = accuracy.rows
    assert (middle, end) == ("median over pairs", "95th percentile over pairs") and figure(no_d1) == ""
    assert mean > 3 and [median, most] == pytest.approx(np.nanpercentile(epes, [50, 95]))


def test_pairs_have_short_names_that_differ():
    assert short_names(["a/b/im0", "a/c/im0", "d/7"]) == ["b/im0", "c/im0", "7"]
    assert short_names(["s1/left/rgb/0", "s2/left/rgb/0"]) == ["s1", "s2"]
    assert short_names(["s1/left/rgb/0", "s2/left/rgb/0", "s2/left/rgb/1"]) == ["s1/…/0", "s2/…/0", "1"]
    assert short_names(["0", "a/0"]) == ["0", "a/0"]


def headings_of(*paths):
    one = made(np.ones((4, 4), np.float32))
    names = [path.rpartition("/")[2].partition(".")[0] for path in paths]
    return headings(
        side_by_side({"": [replace(one, name=name, path=path) for name, path in zip(names, paths, strict=True)]})
    )


def test_a_name_that_every_data_set_has_follows_the_folder_that_tells_the_pair():
    """Two pages beside each other would both say im2."""
    assert headings_of("/a/teddy/im2.png") == ["teddy/im2"]
    assert headings_of("run/scene_7/dataset/data/left/rgb/0000.png") == ["scene_7"]
    assert headings_of("kitti/training/image_2/000046_10.png", "kitti/training/image_2/000000_10.png") == [
        "kitti/…/000046_10",
        "kitti/…/000000_10",
    ]
    assert headings_of("left.png") == ["left"] and headings_of("left/0000.png") == ["0000"]
    assert headings_of("s3://b/street.png") == ["street"]


def test_scenes_whose_files_have_one_name_are_told_by_their_folder():
    """As synthesize writes them; a run may have such scenes of two steps."""
    one, file = made(np.ones((4, 4), np.float32)), "data/left/rgb/0000"
    scenes = [("a", 0), ("a", 1), ("b", 0)]
    views = [
        replace(one, name=f"scene_{n}/{file}", path=f"/r/{step}/images/scene_{n}/{file}.png", left=step)
        for step, n in scenes
    ]
    assert headings(side_by_side({"": views[:2]})) == ["scene_0", "scene_1"]
    assert headings(side_by_side({"": views})) == ["a/…/scene_0", "scene_1", "b/…/scene_0"]
    (table,) = images_table({"": {view.path: {"epe": 1.0} for view in views[:2]}}, side_by_side({"": views[:2]}))
    assert (table.title, table.columns[0]) == ("Pairs below /r/a/images/", f"left image, without {file}.png")
    assert [row[0].text for row in table.rows] == ["scene_0", "scene_1"]


def test_the_figures_of_pairs_stand_in_the_order_of_the_accuracy():
    """metrics.csv has another order."""
    (table,) = images_table(
        {"": {"a.png": dict.fromkeys(("epe", "bp1", "bp2", "bp3", "d1", "rmse", "pixels"), 1.0)}}, []
    )
    (accuracy,) = metrics_tables({"epe": 1.0}, {})
    assert [*table.columns[1:]] == [*accuracy.columns[1:], "valid pixels"]


def test_settings_have_names_with_units_that_break_between_words():
    text = page("T", folded={"Settings": {"max_disparity": 192, "coarse_step": 2}, "Arguments": {"max_disparity": 8}})
    cells = re.findall("<td>(.*?)</td>", text)
    assert cells[::2] == ["largest disparity of the network (px)", "coarse step", "max_disparity"]


def test_no_line_ends_within_an_option():
    assert '<span class="whole">--focal PX</span> &lt;' in page("T", note="--focal PX <")


def test_a_column_of_numbers_with_gaps_is_one_of_numbers():
    table = Table("T", ("name", "epe", "none"), [("a", 1.0, ""), ("b", "", "")])
    assert [table.is_number(column) for column in range(3)] == [False, True, False]


def test_a_page_escapes_names_and_loads_nothing(disparity):
    """With a camera it holds the library that turns point clouds, and keeps below the 8 MB of INTERFACES."""
    groups = side_by_side({"": [made(disparity, camera=CAMERA, warnings=["swapped?"], files={"PFM": "a.pfm"})]})
    text = page("T", groups=groups, note="n", warnings=["w<"], folded={"Settings": {"device": "cpu"}})
    assert "a&lt;b" in text and "swapped?" in text and "w&lt;" in text and "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sorted({source[:11] for source in sources}) == ["a.pfm", "data:image/"]
    assert 'id="plotly"' in text and len(text) < 8_000_000
    assert 'id="plotly"' not in page("T", groups=side_by_side({"": [made(disparity)]}))
