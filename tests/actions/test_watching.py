"""What a training run shows while it goes: figures, panels, augmented samples."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
import training_runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stereo_core.data.images import read_image
from stereo_core.models.foundation_stereo.model import FoundationStereo
from stereo_core.report.pictures import STRIP, colour_disparity, scale_of
from stereo_core.training.module import StereoModule
from stereo_core.training.pictures import VALIDATED, WIDTH, Pictures

FIGURES = ("step_time", "pairs_per_second", "data_wait", "memory_gib")


@pytest.fixture(scope="module")
def watch(scenes, split):
    """Start a training run of two steps an epoch that shows all it has."""

    def start(folder, **keys) -> int:
        dataset = {"max_disparity": 64, "train_dataset": split(scenes / "list.txt", 2)}
        dataset["train_dataset"]["augmentation"] = {"crop_size": [32, 64]}
        dataset["val_dataset"] = split(scenes / "list.txt", 3)
        settings = {"results_dir": str(folder), "optim": {"lr": 1e-3, "warmup_steps": 0}, "dataloader_visualize": True}
        return training_runs.start(dataset, settings | keys)

    return start


@pytest.fixture(scope="module")
def watched(watch, tmp_path_factory):
    """(results folder, its TensorBoard events, lines of the log) of a run of two epochs, two steps each."""
    folder, lines = tmp_path_factory.mktemp("watched"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    assert watch(folder, num_epochs=2, log_every_n_steps=2, vis_step_interval=2) == 0
    logging.getLogger().removeHandler(handler)
    events = EventAccumulator(str(folder / "lightning_logs" / "version_1"), size_guidance={"images": 0, "scalars": 0})
    return folder, events.Reload(), lines


def pictures(events: EventAccumulator, tag: str) -> dict[int, np.ndarray]:
    """step -> RGB picture."""
    found = {}
    for event in events.Images(tag):
        encoded = np.frombuffer(event.encoded_image_string, np.uint8)
        found[event.step] = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
    return found


def test_scalars(watched):
    _, events, _ = watched
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {"train_loss_epoch", "lr", "val_loss", "val/epe", "val/bp1", "val/d1"} <= steps.keys()
    assert steps["step_time"] == steps["step_time_epoch"] == [2, 4]
    assert steps["val/epe"] == [0, 2, 4]
    assert steps["lr"][-1] == 4 and events.Scalars("lr")[-1].value == pytest.approx(1e-3)
    value = {name: events.Scalars(f"{name}_epoch")[-1].value for name in FIGURES}
    assert value["pairs_per_second"] * value["step_time"] == pytest.approx(2)  # pairs a step
    assert 0 < value["data_wait"] < 1 and value["memory_gib"] > 0.01


def test_the_same_figures_stand_in_status_json_and_in_the_log(watched, status_lines):
    folder, events, lines = watched
    progress = [line for line in status_lines(folder) if line["message"] == "Training loop in progress"]
    for name in FIGURES[:3]:  # memory is read anew
        logged = [event.value for event in events.Scalars(f"{name}_epoch")]
        assert [line[name] for line in progress] == pytest.approx(logged), name
    epe = events.Scalars("val/epe")[-1].value
    (line,) = [line for line in lines if line.startswith("epoch 2 of 2: train_loss ")]
    assert f"val/epe {epe:.4f}, {progress[-1]['step_time']:.3g} s per step" in line and line.endswith(" GiB of memory")


def test_panels_of_validation(watched, scenes):
    """The list's first images, before training and after every epoch, with colours that mean the same in all."""
    _, events, _ = watched
    shown = pictures(events, "val/images")
    assert list(shown) == [0, 2, 4]
    sizes = [read_image(scenes / f"scene{n}" / "left.png").shape[:2] for n in range(VALIDATED)]
    heights = [round(height * WIDTH / width) for height, width in sizes]
    start = 0
    for number, height in enumerate(heights):
        left = cv2.resize(read_image(scenes / f"scene{number}" / "left.png"), (WIDTH, height), None, 0, 0, 3)
        for picture in shown.values():
            assert (picture[start + STRIP : start + STRIP + height, :WIDTH] == left).all()
        start += height + 2 * STRIP
    assert start == len(shown[0])
    assert np.array_equal(shown[0][:, : 2 * WIDTH], shown[4][:, : 2 * WIDTH])  # left and ground truth
    assert not np.array_equal(shown[0][:, 2 * WIDTH : 3 * WIDTH], shown[4][:, 2 * WIDTH : 3 * WIDTH])


def test_panels_of_training(watched):
    _, events, _ = watched
    shown = pictures(events, "train/images")
    assert list(shown) == [2, 4]
    assert all(picture.shape == (32 * WIDTH // 64 + 2 * STRIP, 4 * WIDTH, 3) for picture in shown.values())


def test_a_panel_shows_the_step_s_own_prediction(watch, tmp_path, monkeypatch):
    """The drawn disparity is the one whose loss was taken, in the colours of the ground truth's scale."""
    drawn, outputs = [], []
    panel_of = Pictures._panel

    def drawing(self, sample, prediction):
        drawn.append((prediction, scale_of(self._truth(sample)), panel_of(self, sample, prediction)))
        return drawn[-1][-1]

    monkeypatch.setattr(Pictures, "_panel", drawing)

    def keep(module, _, output):
        if isinstance(module, FoundationStereo) and module.training:
            outputs.append(output[1][-1])

    hook = torch.nn.modules.module.register_module_forward_hook(keep)
    assert watch(tmp_path, num_epochs=1, vis_step_interval=2) == 0
    hook.remove()
    assert len(outputs) == 2 and len(drawn) == 2 * VALIDATED + 1
    prediction, scale, picture = drawn[VALIDATED]  # between the two validations
    assert torch.equal(prediction, outputs[1][0, 0]) and prediction.shape == (32, 64)
    middle = picture[STRIP + 2 : -STRIP : 5, 2 * WIDTH + 2 : 3 * WIDTH : 5].astype(int)  # every pixel is 5 by 5
    assert np.abs(middle - colour_disparity(prediction.cpu().numpy(), scale)).max() <= 1


def test_augmented_samples(watched):
    folder, _, lines = watched
    files = sorted((folder / "dataloader").iterdir())
    assert [file.name for file in files] == [f"{number:06d}_left.png" for number in range(4)]
    shapes = {read_image(file).shape for file in files}
    assert shapes == {(2 * 32 + 2 * STRIP, 4 * 2 * 64, 3)}  # twice as large, with titles and a scale
    assert f"wrote 4 augmented training samples to {folder / 'dataloader'}" in lines


def test_a_dry_run_does_one_of_everything_and_leaves_pictures_of_samples_alone(watch, tmp_path, monkeypatch):
    calls, drawn = [], []
    for name in ("training_step", "validation_step"):
        step = getattr(StereoModule, name)
        monkeypatch.setattr(StereoModule, name, lambda *args, s=step, n=name: calls.append(n) or s(*args))
    log = Pictures._log
    monkeypatch.setattr(Pictures, "_log", staticmethod(lambda *args: drawn.append(args[1]) or log(*args)))
    assert watch(tmp_path, num_epochs=3, is_dry_run=True) == 0
    assert calls == ["validation_step", "training_step", "validation_step"]
    assert drawn == ["val", "train", "val"]
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.yaml", "status.json", "dataloader"}
    assert len(list((tmp_path / "dataloader").iterdir())) == 4
