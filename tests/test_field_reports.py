"""What people reported of other software of this field ends neither silently nor with a traceback here."""

from __future__ import annotations

import numpy as np
import pytest

from stereo_core.data.annotations import check_files, read_annotations
from stereo_core.data.codecs import read_disparity, write_pfm
from stereo_core.data.images import read_image
from stereo_core.data.rectification import doubts
from stereo_core.engines.files import file_kind
from stereo_core.errors import DataError, ModelError, UserError
from stereo_core.models.files import read_weights
from stereo_core.orchestration import preflight
from stereo_core.orchestration.commands.params import compiled_file
from stereo_core.orchestration.graph import load_pipeline

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 19332096\n"


@pytest.mark.parametrize(("written", "meant"), [(b"-1", b"1"), (b"1", b"-1")])
def test_a_pfm_whose_header_denies_its_byte_order_is_no_ground_truth(tmp_path, written, meant):
    """libvips wrote such files (libvips/libvips#3885); their values, 1e-38 to 1e38, count as disparities elsewhere."""
    disparity = np.random.default_rng(0).uniform(0.5, 190, (20, 30)).astype(np.float32)
    disparity[:3] = 0  # occluded
    body = disparity[::-1].astype("<f4" if meant == b"-1" else ">f4").tobytes()
    (tmp_path / "d.pfm").write_bytes(b"Pf\n30 20\n" + written + b"\n" + body)
    with pytest.raises(
        DataError, match=r"d\.pfm: the bytes are in the opposite order of what the header says; change the sign"
    ):
        read_disparity(tmp_path / "d.pfm")
    (tmp_path / "d.pfm").write_bytes(b"Pf\n30 20\n" + meant + b"\n" + body)
    assert np.array_equal(read_disparity(tmp_path / "d.pfm")[0], disparity)


@pytest.mark.parametrize("values", [0.0, np.inf, 1e-3, 4e5])
def test_odd_values_alone_are_no_swapped_bytes(tmp_path, values):
    write_pfm(tmp_path / "d.pfm", np.full((4, 5), values, np.float32))
    read_disparity(tmp_path / "d.pfm")


def test_a_pointer_of_git_lfs_says_so(tmp_path):
    """A clone without LFS has these in place of weights and images (NVlabs/CALM#7: "invalid load key, 'v'")."""
    path = tmp_path / "file"
    path.write_text(LFS)
    readers = (read_image, lambda path: read_disparity(path, "pfm"), read_annotations, read_weights, file_kind)
    for reader in readers:
        with pytest.raises(UserError, match=r"file: a Git LFS pointer, not the file itself; fetch the file with `"):
            reader(path)


def test_a_list_of_windows_says_what_to_write(tmp_path):
    """gengshan-y/high-res-stereo#34: paths with backslashes find nothing."""
    (tmp_path / "list.txt").write_bytes(b"left\\000.png right\\000.png\r\n")
    with pytest.raises(DataError, match=r"list\.txt:1: no such left file: .*\n.*\nwrite / instead of \\ in the paths"):
        check_files(read_annotations(tmp_path / "list.txt"))


def test_one_image_as_both_views_is_doubted():
    """Single-stream cameras give one image with both views (erget/StereoVision#10); disparity 0 would come of it."""
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    (doubt,) = doubts(image, image.copy())
    assert "same image" in doubt and "halves" in doubt
    assert doubts(image, np.roll(image, -3, axis=1)) == []


@pytest.mark.parametrize(("value", "why"), [("None", "'None' is not one of"), ("{{workflow.name}}", "is not one of")])
def test_none_as_a_text_and_a_reference_of_argo_are_refused_before_the_first_step(tmp_path, value, why):
    """kubeflow/pipelines#1485: None arrives as a text; argoproj/argo-workflows#5169: references stay as they are."""
    from pathlib import Path

    pipeline = load_pipeline(compiled_file(Path("train_to_engine")))
    given = {"images_uri": str(tmp_path), "dataset_name": value}
    with pytest.raises(UserError, match=f"parameter dataset_name: .*{why}"):
        preflight.check(pipeline, given)
    preflight.check(pipeline, {"images_uri": str(tmp_path), "dataset_name": "Kitti"})


def test_a_damaged_checkpoint_is_no_pointer(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"version 2")
    with pytest.raises(ModelError, match="not a checkpoint"):
        read_weights(tmp_path / "x.pth")
