"""What a training says of its result, compared with the weights that it started from."""

from __future__ import annotations

import pytest

from stereo_core.spec.train import Train
from stereo_core.training.checkpoints import Checkpoints, write_sidecar


@pytest.mark.parametrize(("before", "is_worse"), [(0.7068, True), (0.8, False)])
@pytest.mark.parametrize(("monitor", "initial"), [("val/epe", "initial_epe"), ("val/loss", "initial_val_loss")])
def test_a_training_that_made_nothing_better_says_so(tmp_path, monitor, initial, before, is_worse):
    """Else the worse checkpoint is taken for an improvement."""
    checkpoints = Checkpoints(tmp_path, Train(monitor=monitor))
    checkpoints.names, checkpoints.initial = ["model_epoch_000_step_00002.pth"], {initial: before}
    write_sidecar(tmp_path / checkpoints.names[0], {"kind": "checkpoint", "epoch": 0, "metrics": {monitor: 0.7153}})
    where = f"{tmp_path}/model_epoch_000_step_00002.pth, of epoch 1 "
    assert where in checkpoints.words(), "as the log counts epochs"
    name = {"val/epe": "EPE", "val/loss": "validation loss"}[monitor]
    assert checkpoints.words().endswith(f"with {name} 0.715 px ({before:.3f} px before training)")
    doubt = checkpoints.doubt()
    assert (doubt is not None) == is_worse
    assert not is_worse or f"{name} 0.707 px before, 0.715 px at best" in doubt


def test_without_a_validation_before_there_is_nothing_to_compare(tmp_path):
    checkpoints = Checkpoints(tmp_path, Train())
    checkpoints.names = ["model_epoch_000_step_00002.pth"]
    write_sidecar(tmp_path / checkpoints.names[0], {"kind": "checkpoint", "epoch": 0, "metrics": {"val/epe": 0.7153}})
    assert checkpoints.words().endswith("with EPE 0.715 px") and checkpoints.doubt() is None
