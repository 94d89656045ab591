"""`depth_net doctor`: what would end a long run is said before it starts."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from stereo_core.actions.doctor import weights
from stereo_core.actions.doctor.case import GIB, Case, Gpu, Machine
from stereo_core.actions.doctor.data import figures_of, files, find_faults, pairs, samples
from stereo_core.actions.doctor.machine import cores, devices, disk, kept_checkpoints, links, memory, shared_memory
from stereo_core.data.augmentation import Pair
from stereo_core.data.codecs import write_pfm
from stereo_core.data.images import write_png
from stereo_core.errors import ModelError
from stereo_core.models import create_model
from stereo_core.run.perform import perform
from stereo_core.spec import spec_from_dict

LAPTOP = Machine(gpus=(), cores=8, memory=16 * GIB, shared_memory=8 * GIB)
SERVER = replace(LAPTOP, gpus=(Gpu("T4", 15 * GIB, (7, 5)), Gpu("H100", 79 * GIB, (9, 0))), cores=64)
MODEL = {"preset": "tiny", "train_iters": 1, "stereo_backbone": {"allow_random_backbone": True}}


@pytest.fixture
def case(scenes, split, tmp_path):
    """overrides of `train` and `dataset.train_dataset` -> a Case on LAPTOP with the pairs of `scenes`."""

    def make(machine: Machine = LAPTOP, data_file=scenes / "list.txt", train=None, **train_dataset) -> Case:
        dataset = {
            "max_disparity": 64,
            "train_dataset": split(data_file) | {"augmentation": {"crop_size": [60, 90]}} | train_dataset,
            "val_dataset": split(scenes / "list.txt"),
        }
        settings = {"results_dir": str(tmp_path), "optim": {"warmup_steps": 5}} | (train or {})
        tree = {"dataset": dataset, "model": MODEL, "train": settings}
        return Case(spec_from_dict("doctor", tree), machine)

    return make


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_twelve_bit_images_are_named_with_what_they_are_taken_for(case, tmp_path):
    for side in ("left", "right"):
        ramp = np.linspace(0, 4012, 64 * 96).reshape(64, 96).astype(np.uint16)
        write_png(tmp_path / f"{side}.png", ramp)
    write_pfm(tmp_path / "gt.pfm", np.full((64, 96), 9.0, np.float32))
    (tmp_path / "list.txt").write_text("left.png right.png gt.pfm\n")
    deep = case(data_file=tmp_path / "list.txt")
    list(files(deep))
    [found] = [finding for finding in samples(deep) if "16-bit" in finding.text]
    assert found.level == "warning" and "largest value in its 16-bit images is 4012" in found.text
    assert "image_bits=12" in found.mend


@pytest.mark.parametrize(
    ("missing", "level", "said"),
    [
        ((), "ok", "symbolic links"),
        (("symlink",), "ok", "hard links"),
        (
            ("symlink", "link"),
            "warning",
            "does not support links: dn_model_latest.pth and dn_model_best.pth will be copies",
        ),
    ],
)
def test_links_are_tried_in_the_results_folder(case, tmp_path, monkeypatch, missing, level, said):
    """The calls are refused as such file systems do; a real one can not be mounted here."""

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    here = case(train={"keep_checkpoints": 3})
    [found] = links(here)
    assert found.level == level and said in found.text and list(tmp_path.iterdir()) == []
    here.network = create_model(preset="tiny")
    assert f"{5 + 2 * (level == 'warning')} checkpoints of" in next(disk(here)).text


def test_a_spec_that_is_fine_exits_0_and_the_training_s_own_folder_is_left_alone(scenes, split, tmp_path, capsys):
    dataset = {
        "max_disparity": 64,
        "train_dataset": split(scenes / "list.txt"),
        "val_dataset": split(scenes / "list.txt"),
    }
    dataset["train_dataset"]["augmentation"] = {"crop_size": [64, 96]}
    spec = spec_from_dict("doctor", {"dataset": dataset, "model": MODEL, "train": {"results_dir": str(tmp_path)}})
    assert perform("doctor", spec) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["doctor"]
    lines = [json.loads(line) for line in (tmp_path / "doctor" / "status.json").read_text().splitlines()]
    found = {(one["check"], one["level"]) for one in lines[-2]["findings"]}
    assert {("weights", "ok"), ("files", "ok"), ("samples", "ok"), ("disk", "ok"), ("memory", "ok")} <= found
    assert lines[-1]["status"] == "SUCCESS" and lines[-1]["kpi"]["problems"] == 0
    assert "4 pairs, all files exist" in capsys.readouterr().out


def test_a_missing_file_and_a_missing_backbone_are_found_in_one_go_and_exit_2(scenes, split, tmp_path):
    listed = tmp_path / "list.txt"
    lines = (scenes / "list.txt").read_text().splitlines()
    listed.write_text("\n".join([*lines, lines[0].replace("gt.pfm", "nothing.pfm")]) + "\n")
    model = {"preset": "tiny", "train_iters": 1}
    dataset = {"max_disparity": 64, "train_dataset": split(listed, data_root=str(scenes))}
    spec = spec_from_dict("doctor", {"dataset": dataset, "model": model, "train": {"results_dir": str(tmp_path / "r")}})
    assert perform("doctor", spec) == 2
    checks, last = (
        json.loads(line) for line in (tmp_path / "r" / "doctor" / "status.json").read_text().splitlines()[-2:]
    )
    text = " ".join(found["text"] for found in checks["findings"])
    assert "scene0/nothing.pfm: No such file or directory" in text and "allow_random_backbone=true" in text
    assert last["status"] == "FAILURE" and "2 problems found, see the table: weights, files" in last["message"]


def test_files_that_can_not_be_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_text("x")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0)
    names = ("folder", "empty", "good", "secret", "nothing")
    faults = find_faults([str(tmp_path / name) for name in names])
    locked = {"secret": "Permission denied"} if os.geteuid() else {}  # root may read everything
    expected = {"folder": "not a file", "empty": "the file is empty", "nothing": "No such file or directory"}
    assert {os.path.basename(path): fault for path, fault in faults.items()} == expected | locked


def test_lists_of_the_scenes_are_fine(case):
    one = case()
    assert levels(files(one)) == ["ok", "ok"] and levels(samples(one)) == ["ok", "ok"]
    assert one.largest == {"train": (64, 96), "val": (64, 96)}
    [enough] = pairs(one)
    assert enough.text == "4 training pairs, batches of 2: 2 steps per epoch, 20 in total"


def test_too_few_pairs_for_a_batch(case):
    few = case(batch_size=5)
    list(files(few))
    assert levels(pairs(few)) == ["problem"]


@pytest.mark.parametrize(("epochs", "found"), [(2, ["ok", "warning"]), (3, ["ok"])])
def test_a_warm_up_that_takes_the_whole_run(case, epochs, found):
    one = case(train={"num_epochs": epochs})
    list(files(one))
    findings = list(pairs(one))
    assert levels(findings) == found
    assert len(found) == 1 or "the warm-up takes 5 steps, but the run has only 4" in findings[1].text


def changed_list(scenes, folder, change):
    """The scenes with `change(left, right, disparity)` applied to each, and their list."""
    from stereo_core.data.codecs import read_disparity
    from stereo_core.data.images import read_image

    lines = []
    for number in range(3):
        there = scenes / f"scene{number}"
        disparity, _ = read_disparity(there / "gt.pfm")
        left, right, disparity = change(read_image(there / "left.png"), read_image(there / "right.png"), disparity)
        for name, image in (("left", left), ("right", right)):
            write_png(folder / f"{name}{number}.png", image)
        write_pfm(folder / f"gt{number}.pfm", disparity)
        lines.append(f"left{number}.png right{number}.png gt{number}.pfm\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder / "list.txt"


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        (lambda left, right, disp: (right, left, disp), "problem", "x + d, not at x - d"),
        (lambda left, right, disp: (left, right, disp * 256), "problem", "half the image's width"),
        (
            lambda left, right, disp: (left, right, disp / 256),
            "problem",
            "is disparity_scale right?",
        ),
        (
            lambda left, right, disp: (left, left, disp),
            "warning",
            "list.txt:1 (3 of 3 pairs looked at): both views are",
        ),
        (lambda left, right, disp: (left, right, disp * 0), "problem", "hardly any valid pixel"),
        (lambda left, right, disp: (left[:9], right, disp), "problem", "combines files of different pairs"),
        (
            lambda left, right, disp: (left[:59], right[:59], disp[:59]),
            "warning",
            "but the crop is 90 x 60 px, so a part",
        ),
    ],
)
def test_samples_that_are_not_what_they_should_be(case, scenes, tmp_path, change, level, words):
    one = case(data_file=changed_list(scenes, tmp_path, change))
    list(files(one))
    found = [finding for finding in samples(one) if words in finding.text]
    assert found and {finding.level for finding in found} == {level}


@pytest.mark.parametrize(
    ("left", "right", "disparity", "name"),
    [
        ("KITTI_2015/training/image_2/000000_10.png", "image_3", "disp_occ_0/000000_10.png", "Kitti"),
        ("Middlebury/MiddEval3/trainingQ/Motorcycle/im0.png", "im1.png", "disp0GT.pfm", "Middlebury"),
    ],
)
def test_views_of_real_pairs_are_told_apart(shared, left, right, disparity, name):
    """With room to spare: a list counts as swapped below 0.8."""
    from stereo_core.data.codecs import read_disparity
    from stereo_core.data.images import read_image

    left = shared / "data" / left
    folder, swap = (left.parents[1], left.parent.name) if name == "Kitti" else (left.parent, left.name)
    images = read_image(left), read_image(str(left).replace(swap, right))
    gt, _ = read_disparity(folder / disparity, dataset_name=name)
    right_way, swapped = (figures_of(Pair(*views, gt), 416).differences for views in (images, images[::-1]))
    assert right_way[0] < 0.5 * min(right_way[1:]) and swapped[1] < 0.5 * swapped[0]


def test_ground_truth_above_the_limit_is_counted():
    image = np.zeros((2, 8, 3), np.uint8)
    disparity = np.array([[0, 0, 0, 0, 2, 2, 6, 1]] * 2, np.float32)
    seen = figures_of(Pair(image, image, disparity), 6)
    assert (seen.valid, seen.above, seen.range) == (0.5, 0.25, (1, 2, 6))


def test_weights_are_loaded_as_the_training_will(case, tmp_path, tiny_checkpoint):
    (tmp_path / "model_epoch_000_step_00003.pth").write_bytes(tiny_checkpoint.read_bytes()[:1000])
    one = case()
    assert levels(weights(one)) == ["problem", "ok"]  # another run's checkpoints are there
    assert one.network.config.preset == "tiny"
    damaged = case(train={"resume_training_checkpoint_path": "auto"})
    with pytest.raises(ModelError, match=r"all checkpoints \(1\) are damaged"):
        list(weights(damaged))
    with pytest.raises(ModelError, match="no training state"):
        list(weights(case(train={"resume_training_checkpoint_path": str(tiny_checkpoint)})))
    assert levels(weights(case(train={"pretrained_model_path": str(tiny_checkpoint)}))) == ["problem", "ok"]


def test_ground_truth_beyond_the_cost_volume(case):
    one = case()
    one.spec.dataset.max_disparity = 65
    assert levels(weights(one)) == ["ok", "warning"]
    (finding,) = [finding for finding in weights(one) if finding.level == "warning"]
    assert "65 px" in finding.text and finding.mend.startswith("lower it to 64")


def test_devices_and_arithmetic(case):
    assert levels(devices(case(train={"precision": "fp16"}))) == ["problem"]
    assert levels(devices(case(SERVER, train={"precision": "bf16"}))) == ["warning"]
    both = case(SERVER, train={"num_gpus": 2})
    assert levels(devices(both)) == ["ok", "ok"] and both.ranks.world == 2


def test_cores_and_shared_memory(case):
    def found(cores_there, **keys):
        one = case(replace(LAPTOP, cores=cores_there), **keys)
        one.pairs = {"train": [()] * 5}
        list(devices(one))
        [finding] = cores(one)
        return finding

    assert found(8, workers=4).text == "train starts 4 loader processes on 8 cores"
    assert found(8, workers=0).level == "warning"
    for there, workers in ((2, 2), (8, 5)):
        few = found(there, workers=8)
        assert few.level == "ok" and f"train starts {workers} loader processes on {there} cores" in few.text
        assert f"dataset.train_dataset.workers: using {workers} instead of 8; " in few.text, "as the log of train"
    busy = found(4, workers=8, train={"num_gpus": 2})
    assert busy.text.startswith("8 loader processes on 4 cores: each of the 2 training processes starts 4")
    assert busy.mend == "set dataset.train_dataset.workers=2, or request 8 cores"
    assert found(1, workers=1, train={"num_gpus": 2}).mend == "request 2 cores", "the number of workers can not be less"
    one = case(replace(LAPTOP, shared_memory=2_000_000), workers=3, batch_size=2)
    list(files(one))
    (found,) = shared_memory(one)  # 3 processes x 2 batches x 2 pairs x 64 x 96 px x 29 bytes = 2.1 MB
    assert found.level == "problem"
    one.machine = replace(LAPTOP, shared_memory=2_200_000)
    assert levels(shared_memory(one)) == ["ok"]


def test_checkpoints_that_are_kept(case):
    assert kept_checkpoints(case(train={"num_epochs": 1})) == 2  # the only one, and one being written
    one = case(train={"num_epochs": 7, "checkpoint_interval": 2})
    assert kept_checkpoints(one) == 5  # three, the best, and the one being written
    one.spec.train.keep_checkpoints = 0
    assert kept_checkpoints(one) == 5  # after epochs 2, 4, 6 and 7, and the best
    assert levels(disk(one)) == ["warning"]
    one.network = create_model(preset="tiny")
    assert levels(disk(one)) == ["ok"]
    one.spec.train.checkpoint_interval_unit = "step"
    one.spec.train.num_epochs = 10**9
    list(files(one))
    assert levels(disk(one)) == ["problem"]


@pytest.mark.slow
def test_a_step_that_does_not_fit(case):
    one = case(train={"activation_checkpoint": False}, batch_size=1)
    one.network = create_model(preset="tiny", train_iters=1)
    assert levels(memory(one)) == ["ok"]
    needed = int(one.kpi["memory_gib"] * GIB)
    for there, level in ((needed * 105 // 100, "warning"), (needed * 95 // 100, "problem")):
        one.machine = replace(LAPTOP, memory=there)
        (found,) = memory(one)
        assert found.level == level and "activation_checkpoint=true" in found.mend
