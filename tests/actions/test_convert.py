from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stereo_core.actions.convert import run
from stereo_core.data.annotations import read_annotations, split_line
from stereo_core.errors import DataError, SpecError
from stereo_core.spec import spec_from_dict

FSD = {
    "image_dir_pattern": ["left/rgb"],
    "right_dir_pattern": ["right/rgb"],
    "depth_dir_pattern": ["left/disparity"],
    "image_extension": ".png",
}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def fsd_tree(root: Path, scenes: int = 4, frames: int = 5) -> None:
    for scene in range(scenes):
        for frame in range(frames):
            touch(root, *(f"s{scene}/{part}/{frame}.png" for part in ("left/rgb", "right/rgb", "left/disparity")))


def convert(root: Path, results: Path, **keys):
    results.mkdir(exist_ok=True)
    return run(spec_from_dict("convert", {"data_root": str(root), "results_dir": str(results), **keys}), None)


def lines(path: Path) -> list[list[str]]:
    return [split_line(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def results(tmp_path):
    return tmp_path / "lists"


def test_tao_s_middlebury_example_runs(tmp_path, results, caplog):
    """Its entries after the first are above data_root, its extensions have no dot, or are empty beside .pfm files."""
    caplog.set_level("INFO")
    root = tmp_path / "2014b" / "MiddEval3" / "trainingQ"
    for scene in ("Adirondack", "ArtL"):
        touch(root, *(f"{scene}/{name}" for name in ("im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png")))
    above = ["2014b/", "MiddEval3/"]
    keys = {"image_dir_pattern": ["im0", *above], "right_dir_pattern": ["im1", *above]}
    keys |= {"depth_dir_pattern": ["disp0GT", *above], "nocc_dir_pattern": ["mask0nocc", *above]}
    keys |= {"image_extension": "png", "depth_extension": "", "nocc_extension": "", "split_ratio": 0.0}
    convert(root, results, **keys)
    names = ("im0.png", "im1.png", "disp0GT.pfm", "mask0nocc.png")
    assert lines(results / "test.txt") == [
        [f"{root}/{scene}/{name}" for name in names] for scene in ("Adirondack", "ArtL")
    ]
    assert "ignoring 2014b/, MiddEval3/, which is part of data_root itself" in caplog.text


def test_an_entry_that_selects_below_data_root_does_so_though_it_is_above_too(tmp_path, results):
    """As does one that is to be replaced: left out, it would give other files."""
    root = tmp_path / "training" / "set"
    touch(root, "training/image_2/a.png", "training/image_3/a.png", "testing/image_2/b.png", "testing/image_3/b.png")
    keys = {"image_extension": "png", "image_dir_pattern": ["image_2", "training"]}
    convert(root, results, right_dir_pattern=["image_3", "training"], **keys)
    assert [left for left, _ in lines(results / "test.txt")] == [f"{root}/training/image_2/a.png"]
    keys["image_dir_pattern"] = ["image_2", "set"]
    with pytest.raises(DataError, match=r"none of 4 files has image_dir_pattern .* \(no such path has 'set'\)"):
        convert(root, results, right_dir_pattern=["image_3", "other"], **keys)


def test_what_file_managers_leave_behind_is_no_data(root, results, caplog):
    fsd_tree(root, scenes=1, frames=2)
    convert(root, results, **FSD)
    before = sorted(line for file in results.glob("*.txt") for line in lines(file))
    places = ("._0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "Thumbs.db")
    touch(root, *(f"s0/{part}/{name}" for part in ("left/rgb", "right/rgb", "left/disparity") for name in places))
    with caplog.at_level("INFO"):
        convert(root, results, **FSD)
    assert sorted(line for file in results.glob("*.txt") for line in lines(file)) == before
    assert "Thumbs.db, ...): 12" in caplog.text


def test_two_files_of_a_name_are_not_chosen_between(root, results):
    touch(root, "im0.png", "im1.png", "disp0.pfm", "disp0.tiff")
    keys = {"image_dir_pattern": ["im0"], "right_dir_pattern": ["im1"], "depth_dir_pattern": ["disp0"]}
    with pytest.raises(DataError, match=r"disp0\.png"):
        convert(root, results, image_extension="png", depth_extension="", **keys)


def test_every_depth_in_sorted_order_with_files_directly_below_the_root(root, results):
    for folder in ("", "b/", "a/deep/er/", "a/"):
        touch(root, f"{folder}im0.png", f"{folder}im1.png", f"{folder}other.png")
    outcome = convert(root, results, image_dir_pattern=["im0"], right_dir_pattern=["im1"], image_extension="png")
    lefts = [left for left, _ in lines(results / "test.txt")]
    assert lefts == [f"{root}/{name}" for name in ("a/deep/er/im0.png", "a/im0.png", "b/im0.png", "im0.png")]
    assert all(right == left.replace("im0", "im1") for left, right in lines(results / "test.txt"))
    assert outcome.artifacts == {"annotations": results}
    assert f"4 samples (test 4) in {results}, " in outcome.message
    assert not (results / "missing.txt").exists()


def test_only_element_zero_is_replaced_unless_both_lists_go_on(root, results):
    """TAO pairs wrong files when there are several patterns; its documentation says element 0."""
    touch(root, "image_2/left/1.png", "image_3/left/1.png", "gt/truth/1.png")
    convert(
        root,
        results,
        image_dir_pattern=["image_2", "left"],
        right_dir_pattern=["image_3"],
        depth_dir_pattern=["gt", "truth"],
        image_extension=".png",
    )
    assert lines(results / "test.txt") == [
        [f"{root}/{n}" for n in ("image_2/left/1.png", "image_3/left/1.png", "gt/truth/1.png")]
    ]


def test_patterns_do_not_replace_what_another_pattern_wrote(root, results):
    touch(root, "a/b/1.png", "b/c/1.png")
    convert(root, results, image_dir_pattern=["a/", "b/"], right_dir_pattern=["b/", "c/"], image_extension=".png")
    assert lines(results / "test.txt") == [[f"{root}/a/b/1.png", f"{root}/b/c/1.png"]]


def test_patterns_work_below_data_root_only(tmp_path, results):
    root = tmp_path / "left" / "im0"
    touch(root, "left/1.png", "right/1.png", "other/1.png")
    convert(root, results, image_dir_pattern=["left"], right_dir_pattern=["right"], image_extension=".png")
    assert lines(results / "test.txt") == [[f"{root}/left/1.png", f"{root}/right/1.png"]]


@pytest.mark.parametrize(
    "patterns", [(["/left/"], ["/right/"]), (["left/f"], ["right/f"]), (["left", "f1"], ["right"])]
)
def test_patterns_may_hold_slashes_and_reach_into_the_name(root, results, patterns):
    touch(root, "left/f1.png", "right/f1.png", "left/g1.jpg", "f1left/x.png")
    convert(root, results, image_dir_pattern=patterns[0], right_dir_pattern=patterns[1], image_extension=".png")
    assert lines(results / "test.txt") == [[f"{root}/left/f1.png", f"{root}/right/f1.png"]]


def test_suffixes_change_only_at_the_end_and_match_in_any_case(root, results):
    touch(root, "a.png.d/im0.png", "a.png.d/im1.png", "a.png.d/gt0.pfm")
    touch(root, "b/im0.PNG", "b/im1.PNG", "b/gt0.PFM", "c/im0.Png", "c/im1.Png", "c/gt0.pfm", "d/im0.jpg", "d/im1.jpg")
    convert(
        root,
        results,
        image_dir_pattern=["im0"],
        right_dir_pattern=["im1"],
        depth_dir_pattern=["gt0"],
        image_extension="png",
        depth_extension=".pfm",
    )
    assert lines(results / "test.txt") == [
        [f"{root}/{folder}/{name}" for name in names]
        for folder, names in {
            "a.png.d": ("im0.png", "im1.png", "gt0.pfm"),
            "b": ("im0.PNG", "im1.PNG", "gt0.PFM"),
            "c": ("im0.Png", "im1.Png", "gt0.pfm"),
        }.items()
    ]


def test_a_suffix_may_be_more_than_an_extension_and_a_pattern_may_hold_it(root, results):
    touch(root, "image_2/7_10.png", "image_3/7_10.png", "disp/7.pfm", "image_2/7_11.png", "image_3/7_11.png")
    common = {"image_dir_pattern": ["image_2"], "right_dir_pattern": ["image_3"], "depth_dir_pattern": ["disp"]}
    convert(root, results, image_extension="_10.png", depth_extension=".pfm", **common)
    assert lines(results / "test.txt") == [
        [f"{root}/{n}" for n in ("image_2/7_10.png", "image_3/7_10.png", "disp/7.pfm")]
    ]
    touch(root, "m/im0.png", "m/im1.png", "m/gt.pfm")
    patterns = dict(zip(common, (["im0.png"], ["im1.png"], ["gt.pfm"]), strict=True))
    convert(root, results, image_extension=".png", depth_extension=".png", **patterns)
    assert lines(results / "test.txt") == [[f"{root}/m/{n}" for n in ("im0.png", "im1.png", "gt.pfm")]]


def test_an_empty_extension_takes_every_suffix_and_replaces_the_files_own(root, results):
    touch(root, "left/1.png", "right/1.png", "gt/1.pfm", "left/2.jpg", "right/2.jpg", "gt/2.pfm")
    convert(
        root,
        results,
        image_dir_pattern=["left"],
        right_dir_pattern=["right"],
        depth_dir_pattern=["gt"],
        image_extension="",
        depth_extension=".pfm",
    )
    assert [row[2] for row in lines(results / "test.txt")] == [f"{root}/gt/1.pfm", f"{root}/gt/2.pfm"]


def test_masks_are_the_fourth_column(root, results):
    touch(root, *(f"{part}/1.{end}" for part, end in (("l", "jpg"), ("r", "jpg"), ("d", "pfm"), ("m", "png"))))
    convert(
        root,
        results,
        image_dir_pattern=["l/"],
        right_dir_pattern=["r/"],
        depth_dir_pattern=["d/"],
        nocc_dir_pattern=["m/"],
        image_extension="jpg",
        depth_extension="pfm",
    )
    assert lines(results / "test.txt") == [[f"{root}/{name}" for name in ("l/1.jpg", "r/1.jpg", "d/1.pfm", "m/1.png")]]


# -- missing files ----------------------------------------------------------------------------------------------------


def test_missing_derived_files_are_listed_counted_and_left_out(root, results, caplog):
    fsd_tree(root, 2, 3)
    (root / "s0/right/rgb/1.png").unlink()
    (root / "s1/left/disparity/2.png").unlink()
    outcome = convert(root, results, **FSD)
    assert len(lines(results / "test.txt")) == 4
    assert "4 samples" in outcome.message and "2 left out" in outcome.message
    assert lines(results / "missing.txt") == [
        [f"{root}/s0/right/rgb/1.png", f"{root}/s0/left/rgb/1.png"],
        [f"{root}/s1/left/disparity/2.png", f"{root}/s1/left/rgb/2.png"],
    ]
    assert "2 left images without a derived file" in caplog.text
    touch(root, "s0/right/rgb/1.png", "s1/left/disparity/2.png")
    convert(root, results, **FSD)
    assert not (results / "missing.txt").exists()


def test_strict_fails_on_a_missing_file_and_writes_nothing(root, results):
    fsd_tree(root, 2, 3)
    (root / "s1/left/disparity/2.png").unlink()
    with pytest.raises(DataError, match=r"s1/left/disparity/2\.png \(for s1/left/rgb/2\.png\)(.|\n)*strict=false"):
        convert(root, results, strict=True, **FSD)
    assert not list(results.iterdir())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"image_dir_pattern": ["lefty"]}, ["60 files", "['lefty']", "image_extension '.png'"]),
        ({"image_extension": ".jpg"}, ["60 files", "['left/rgb']", "'.jpg'"]),
        ({"right_dir_pattern": ["rechts/rgb"]}, ["['rechts/rgb']", "s0/rechts/rgb/0.png"]),
    ],
)
def test_no_sample_at_all_names_what_was_tried(root, results, keys, words):
    fsd_tree(root)
    with pytest.raises(DataError) as error:
        convert(root, results, **FSD | keys)
    for word in (str(root), *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"right_dir_pattern": []}, "right_dir_pattern"),
        ({"right_dir_pattern": ["left/rgb"]}, "replaces no entry"),
        ({"image_dir_pattern": []}, "replaces no entry"),
        ({"depth_dir_pattern": [], "nocc_dir_pattern": ["m"]}, "depth_dir_pattern"),
    ],
)
def test_patterns_that_can_not_pair_anything(root, results, keys, words):
    fsd_tree(root)
    with pytest.raises(SpecError, match=words):
        convert(root, results, **FSD | keys)


# -- splits -----------------------------------------------------------------------------------------------------------


def test_the_split_is_seeded_complete_and_of_the_asked_size(root, results, tmp_path):
    fsd_tree(root)
    convert(root, results, split_ratio=0.7, **FSD)
    train, val = ((results / f"{name}.txt").read_text() for name in ("train", "val"))
    assert not (results / "test.txt").exists()
    rows = train.splitlines() + val.splitlines()
    assert len(train.splitlines()) == 14 and len(set(rows)) == 20
    assert train.splitlines() == sorted(train.splitlines())
    convert(root, tmp_path / "again", split_ratio=0.7, **FSD)
    assert (tmp_path / "again/train.txt").read_text() == train
    convert(root, tmp_path / "other", split_ratio=0.7, seed=7, **FSD)
    assert (tmp_path / "other/train.txt").read_text() != train
    # not simply the first ones
    assert train.splitlines() != sorted(rows)[:14]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_ratio_of_zero_or_one_is_one_test_list(root, results, ratio):
    fsd_tree(root)
    convert(root, results, split_ratio=ratio, **FSD)
    assert len(lines(results / "test.txt")) == 20
    assert not (results / "train.txt").exists() and not (results / "val.txt").exists()


def test_a_scene_stays_on_one_side(root, results):
    fsd_tree(root, scenes=5, frames=4)
    convert(root, results, split_ratio=0.6, split_by_scene=True, **FSD)
    scenes = {
        name: {Path(row[0]).relative_to(root).parts[0] for row in lines(results / f"{name}.txt")}
        for name in ("train", "val")
    }
    assert len(scenes["train"]) == 3 and len(scenes["val"]) == 2
    assert not scenes["train"] & scenes["val"]
    assert len(lines(results / "train.txt")) == 12


def test_a_scene_split_leaves_no_side_empty_and_needs_two_scenes(root, results):
    fsd_tree(root, scenes=2)
    convert(root, results, split_ratio=0.1, split_by_scene=True, **FSD)
    assert len(lines(results / "train.txt")) == len(lines(results / "val.txt")) == 5
    with pytest.raises(DataError, match="one scene"):
        convert(root / "s0", results, split_ratio=0.5, split_by_scene=True, **FSD)


def test_output_is_replaced_not_appended(root, results):
    fsd_tree(root)
    convert(root, results, **FSD)
    once = (results / "test.txt").read_bytes()
    convert(root, results, **FSD)
    assert (results / "test.txt").read_bytes() == once
    assert [path.name for path in results.iterdir()] == ["test.txt"]


# -- names ------------------------------------------------------------------------------------------------------------


def test_names_with_blanks_and_of_any_script_reach_the_reader(root, results):
    touch(root, "my séance/left/深 0.png", "my séance/right/深 0.png", "plain/left/0.png", "plain/right/0.png")
    touch(root, '#1 "x"/left/0.png', '#1 "x"/right/0.png')
    convert(root, results, image_dir_pattern=["left"], right_dir_pattern=["right"], image_extension=".png")
    samples = read_annotations(results / "test.txt")
    assert len(samples) == 3
    assert all(os.path.isfile(path) for sample in samples for path in (sample.left, sample.right))
    [plain] = [line for line in (results / "test.txt").read_text(encoding="utf-8").splitlines() if "plain" in line]
    assert plain.split() == [f"{root}/plain/left/0.png", f"{root}/plain/right/0.png"]


def test_a_name_that_is_not_utf8_reaches_the_reader(root, results):
    for side in (b"left", b"right"):
        folder = os.path.join(os.fsencode(root), side)
        os.makedirs(folder)
        open(os.path.join(folder, b"\xff\xfe.png"), "w").close()
    convert(root, results, image_dir_pattern=["left"], right_dir_pattern=["right"], image_extension=".png")
    [sample] = read_annotations(results / "test.txt")
    assert os.path.isfile(sample.right)


def test_relative_paths(root, results):
    fsd_tree(root, 1, 1)
    convert(root, results, relative_paths=True, **FSD)
    assert lines(results / "test.txt") == [["s0/left/rgb/0.png", "s0/right/rgb/0.png", "s0/left/disparity/0.png"]]
    assert read_annotations(results / "test.txt", root)[0].left == f"{root}/s0/left/rgb/0.png"


def test_lists_are_absolute_when_data_root_is_not(root, results, monkeypatch):
    fsd_tree(root, 1, 1)
    monkeypatch.chdir(root.parent)
    convert(Path("data/"), results, **FSD)
    assert lines(results / "test.txt")[0][0] == f"{root}/s0/left/rgb/0.png"


def test_symbolic_links_are_followed_but_never_round_in_circles(root, results, tmp_path):
    fsd_tree(tmp_path / "elsewhere", 1, 1)
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/s0/back").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    convert(root, results, **FSD)
    assert [row[0] for row in lines(results / "test.txt")] == [f"{root}/link/s0/left/rgb/0.png"]


def test_ground_truth_outside_the_tree_is_looked_up_too(root, results):
    touch(root.parent, "data/left/0.png", "data/right/0.png", "gt/0.png")
    keys = {"image_dir_pattern": ["left"], "right_dir_pattern": ["right"], "depth_dir_pattern": ["../gt"]}
    convert(root, results, image_extension=".png", **keys)
    assert os.path.isfile(lines(results / "test.txt")[0][2])


def test_a_data_root_that_is_not_there(tmp_path, results):
    with pytest.raises((DataError, SpecError), match="data_root"):
        convert(tmp_path / "nowhere", results, **FSD)


def test_the_command_writes_status_and_does_not_import_torch(root, results):
    fsd_tree(root)
    overrides = [f"{key}={json.dumps(value)}" for key, value in FSD.items()]
    script = str(Path(__file__).parent / "imported_by_the_command.py")
    command = [sys.executable, script, "convert", f"data_root={root}", f"results_dir={results}", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
    status = [json.loads(line) for line in (results / "status.json").read_text().splitlines()]
    assert status[-1]["status"] == "SUCCESS" and "20 samples" in status[-1]["message"]
