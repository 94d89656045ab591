"""info: what a data set holds, to the pixel, and what is wrong with one that can not be counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from page_text import text_of

from stereo_core.data.codecs import read_disparity, write_pfm
from stereo_core.data.images import read_mask, write_png
from stereo_core.data.statistics import Statistics, statistics_of_pairs
from stereo_core.errors import SpecError
from stereo_core.report.histogram import bin_edges
from stereo_core.run.perform import perform
from stereo_core.spec import load_spec, spec_from_dict
from stereo_core.step.launch import main as launch

LAUNCH = Path(sys.executable).parent


def info(folder: Path, *sources: dict) -> tuple[int, dict]:
    """Exit code, and what info.json says."""
    spec = spec_from_dict("info", {"data_sources": list(sources), "results_dir": str(folder)})
    code = perform("info", spec)
    return code, json.loads((folder / "info.json").read_text()) if code == 0 else {}


def write_pair(folder: Path, name: str, disparity: np.ndarray, mask: np.ndarray | None = None) -> str:
    """A grey pair with this ground truth; returns its line."""
    grey = np.full((*disparity.shape, 3), 90, np.uint8)
    files = [f"{name}_{side}.png" for side in ("left", "right")]
    for file in files:
        write_png(folder / file, grey)
    write_pfm(folder / f"{name}.pfm", disparity.astype(np.float32))
    if mask is not None:
        write_png(folder / f"{name}_mask.png", mask.astype(np.uint8) * 255)
    return " ".join([*files, f"{name}.pfm", *([f"{name}_mask.png"] if mask is not None else [])])


@pytest.fixture
def known(tmp_path) -> Path:
    """A folder with `ramps.txt`: columns of 1 to 40 px and of 41 to 80 px, of the second a quarter hidden and a row
    not measured; and `bare.txt`: the first pair without its ground truth."""
    ramp = np.tile(np.arange(1.0, 41.0), (32, 1))
    visible = np.ones((32, 40), bool)
    visible[:, :10] = False
    unmeasured = ramp + 40
    unmeasured[0] = np.inf
    lines = [write_pair(tmp_path, "near", ramp), write_pair(tmp_path, "far", unmeasured, visible)]
    (tmp_path / "ramps.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "bare.txt").write_text("near_left.png near_right.png\n")
    return tmp_path


def test_figures_of_known_disparities(known, tmp_path):
    code, told = info(tmp_path / "out", {"data_file": str(known / "ramps.txt")}, {"data_file": str(known / "bare.txt")})
    ramps, bare = told["sources"]
    assert code == 0 and (ramps["name"], bare["name"]) == ("ramps.txt", "bare.txt")
    assert (ramps["pairs"], ramps["ground_truth"], ramps["masks"]) == (2, 2, 1)
    assert ramps["sizes"] == {"40x32": 2}
    assert ramps["pixels"] == 2 * 32 * 40 and ramps["valid_pixels"] == 32 * 40 + 31 * 30
    assert ramps["valid"] == ramps["valid_pixels"] / ramps["pixels"]
    values = np.sort(np.concatenate([np.repeat(np.arange(1, 41), 32), np.repeat(np.arange(51, 81), 31)]))
    expected = [float(np.quantile(values, share, method="inverted_cdf")) for share in (0.5, 0.95)]
    assert ramps["disparity"] == {"min": 1.0, "median": expected[0], "p95": expected[1], "max": 80.0}
    assert (bare["pairs"], bare["ground_truth"], bare["pixels"]) == (1, 0, 0)
    assert bare["valid"] is None and bare["disparity"] is None, "nothing is made up"
    total = told["total"]
    assert (total["pairs"], total["ground_truth"], total["masks"]) == (3, 2, 1)
    assert total["sizes"] == {"40x32": 3} and total["disparity"] == ramps["disparity"]
    assert total["valid"] == ramps["valid"], "a pair without ground truth has no invalid pixels"


def test_what_is_doubtful_about_the_views_stands_on_the_page(known, tmp_path):
    assert info(tmp_path / "out", {"data_file": str(known / "ramps.txt")})[0] == 0
    told = "data_sources[0]: " + str(known / "ramps.txt") + ":1 (2 of 2 pairs looked at): the left image shows nothing"
    assert told in text_of(tmp_path / "out" / "report.html")


def test_synthetic_scenes_against_their_files(scenes, tmp_path):
    """Several sizes, masks, and fractions of a pixel: as NumPy says of the same files."""
    code, told = info(tmp_path, {"data_file": str(scenes / "list.txt")})
    values, pixels = [], 0
    for number in range(4):
        disparity, valid = read_disparity(scenes / f"scene{number}/gt.pfm")
        values.append(disparity[valid & read_mask(scenes / f"scene{number}/mask.png")])
        pixels += disparity.size
    values = np.concatenate(values)
    (source,) = told["sources"]
    assert code == 0 and source["sizes"] == {"96x64": 3, "80x48": 1} and source["masks"] == 4
    assert (source["pixels"], source["valid_pixels"]) == (pixels, len(values))
    found = source["disparity"]
    assert (found["min"], found["max"]) == (values.min(), values.max())
    for name, share in (("median", 0.5), ("p95", 0.95)):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact * (1 - 1 / 2048) <= found[name] <= exact


def test_the_histogram_loses_no_pixel(scenes):
    from stereo_core.data.annotations import read_annotations
    from stereo_core.spec.dataset import DataSource

    statistics = Statistics()
    for look in statistics_of_pairs(read_annotations(scenes / "list.txt"), DataSource()):
        statistics.add(look)
    edges = bin_edges(statistics.largest)
    assert statistics.histogram(edges).sum() == statistics.valid
    half = statistics.histogram(np.array([0, statistics.quantile(0.5)]))
    assert 0.45 < half.sum() / statistics.valid < 0.55


@pytest.mark.parametrize("largest", [0.5, 3, 63.9, 64, 96, 97, 5000])
def test_bins_reach_beyond_the_largest_disparity(largest):
    edges = bin_edges(largest)
    assert edges[0] == 0 and edges[-2] <= largest < edges[-1] and len(edges) <= 98
    assert np.log2(edges[1]).is_integer() and set(np.diff(edges)) == {edges[1]}


def test_real_data(shared, tmp_path):
    """KITTI, Middlebury with its mask and a pair without ground truth, counted a second time by OpenCV."""
    kitti = shared / "data/KITTI_2015/training"
    motorcycle = shared / "data/Middlebury/MiddEval3/trainingQ/Motorcycle"
    names = ("000000_10.png", "000046_10.png")
    folders = ("image_2", "image_3", "disp_occ_0")
    (tmp_path / "kitti.txt").write_text("".join(" ".join(f"{f}/{n}" for f in folders) + "\n" for n in names))
    (tmp_path / "middlebury.txt").write_text("im0.png im1.png disp0GT.pfm mask0nocc.png\n")
    (tmp_path / "bare.txt").write_text("left.png right.png\n")
    code, told = info(
        tmp_path / "out",
        {"data_file": str(tmp_path / "kitti.txt"), "dataset_name": "Kitti", "data_root": str(kitti)},
        {"data_file": str(tmp_path / "middlebury.txt"), "data_root": str(motorcycle)},
        {"data_file": str(tmp_path / "bare.txt"), "data_root": str(shared / "data/NoGT/FoundationStereo")},
    )
    first, second, third = told["sources"]
    stored = np.concatenate([cv2.imread(str(kitti / "disp_occ_0" / n), cv2.IMREAD_UNCHANGED).ravel() for n in names])
    values = stored[stored > 0] / 256
    assert code == 0 and first["sizes"] == {"1242x375": 2}
    assert (first["pixels"], first["valid_pixels"]) == (stored.size, values.size)
    assert (first["disparity"]["min"], first["disparity"]["max"]) == (values.min(), values.max())
    assert first["disparity"]["median"] == pytest.approx(np.median(values), rel=1 / 1024)
    assert second["sizes"] == {"741x497": 1} and second["masks"] == 1 and 0.8 < second["valid"] < 0.98
    assert (third["pairs"], third["ground_truth"], third["sizes"]) == (1, 0, {"960x540": 1})
    assert told["total"]["pairs"] == 4


def test_the_page_holds_figures_and_picture(known, tmp_path):
    assert info(tmp_path / "out", {"data_file": str(known / "ramps.txt")})[0] == 0
    page = text_of(tmp_path / "out" / "report.html")
    cells = [re.findall(r"<t[dh][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    assert ["ramps.txt", "2", "2", "1", "86.33", "1", "35", "77", "80"] in cells
    assert ["ramps.txt", "40 x 32", "2"] in cells
    assert 'src="data:image/png;base64,' in page and not re.search(r"(src|href)=\"(?!data:)", page)
    picture = cv2.imread(str(tmp_path / "out" / "disparities.png"))
    assert picture is not None and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2


def test_without_ground_truth_there_is_no_picture(known, tmp_path):
    assert info(tmp_path / "out", {"data_file": str(known / "bare.txt")})[0] == 0
    assert not (tmp_path / "out" / "disparities.png").exists()
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_lists_of_one_name_are_told_apart(known, tmp_path):
    (known / "night").mkdir()
    (known / "night" / "bare.txt").write_text("../near_left.png ../near_right.png\n")
    files = [known / "bare.txt", known / "night" / "bare.txt", known / "bare.txt"]
    _, told = info(tmp_path / "out", *({"data_file": str(file)} for file in files))
    here = known.name
    assert [source["name"] for source in told["sources"]] == [here, f"{here}/night", f"{here}-2"]


def test_the_command_line_prints_the_figures(known, tmp_path):
    sources = f"data_sources=[{{data_file: {known / 'ramps.txt'}}}]"
    command = [LAUNCH / "depth_net", "info", sources, f"results_dir={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"ramps\.txt +│ +2 │ +2 │ +1 │ +86\.33 │ +1 │ +35 │ +77 │ +80 ", done.stdout)
    assert re.search(r"ramps\.txt +│ 40 x 32 +│ +2 ", done.stdout)
    assert done.stdout.count("86.33") == 1, "neither as a total of one source nor in another table"


def test_scenes_without_end_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"data_sources\[0\]\.dataset_name: Synthetic: .*synthesize"):
        spec_from_dict("info", {"data_sources": [{"dataset_name": "Synthetic"}], "results_dir": str(tmp_path)})


@pytest.mark.parametrize("sources", [[], [{}]])
def test_no_source_is_refused(tmp_path, sources):
    with pytest.raises(SpecError, match=r"data_sources.*(at least one entry with a data_file|is required by info)"):
        spec_from_dict("info", {"data_sources": sources, "results_dir": str(tmp_path)})


def test_a_list_that_is_not_there_is_refused_with_its_key(tmp_path):
    with pytest.raises(SpecError, match=r"data_sources\[0\]\.data_file: no such file: .*gone\.txt"):
        load_spec("info", None, [f"data_sources=[{{data_file: {tmp_path}/gone.txt}}]", f"results_dir={tmp_path}"])


def test_a_list_without_pairs_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    assert info(tmp_path / "out", {"data_file": str(tmp_path / "empty.txt")})[0] == 2
    assert "empty.txt: the annotation list is empty" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "said"), [(b"\x89PNG", "PNG"), (None, "no such right file")])
def test_an_unreadable_file_is_named_with_its_line(known, tmp_path, capsys, content, said):
    """In the middle of a list; nothing that looks whole is left."""
    right = known / "far_right.png"
    right.unlink()
    if content:
        right.write_bytes(content)
    assert info(tmp_path / "out", {"data_file": str(known / "ramps.txt")})[0] == 2
    told = capsys.readouterr().err
    assert "ramps.txt:2: " in told and "far_right.png" in told and said in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["status.json"]


def test_as_a_step_it_reads_every_list_there_is(known, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text((known / "ramps.txt").read_text())
    (lists / "test.txt").write_text((known / "bare.txt").read_text())

    def item(path: Path) -> dict:
        return {"artifacts": [{"name": path.name, "uri": str(path), "metadata": {}}]}

    inputs = {"parameterValues": {}, "artifacts": {"images": item(known), "annotations": item(lists)}}
    task = tmp_path / "task"
    outputs = {"artifacts": {"report": item(task / "report")}, "outputFile": str(task / "output.json")}
    assert launch(["info", json.dumps({"inputs": inputs, "outputs": outputs})]) == 0
    page = (task / "report").read_text()
    assert "train.txt" in page and "test.txt" in page and "3 pairs of 2 data sources" in page and "<img" in page
    metadata = json.loads((task / "output.json").read_text())["artifacts"]["report"]["artifacts"][0]["metadata"]
    assert (metadata["kind"], metadata["format"]) == ("report", "html")
