"""Two processes (gloo, CPU) do what one does with the double batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from batches import MODEL, make_batch
from torch.nn.modules.batchnorm import _BatchNorm

from stereo_core.models import create_model
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.spec import spec_from_dict
from stereo_core.training.checkpoints import AtomicCheckpointIO
from stereo_core.training.distribution import Ranks, joined
from stereo_core.training.module import StereoModule
from stereo_core.training.nonfinite import NonFiniteLossError
from stereo_core.training.strategy import GivenRanks, strategy, synchronise_batch_norm, whole

STEPS = 10
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def double_batches() -> list[list[dict]]:
    """Pairs of one-image batches; the two of a pair differ in the number of valid pixels, one has none at all."""
    pairs = []
    for number in range(2 * STEPS):
        pair = [make_batch(2 * number), make_batch(2 * number + 1)]
        for key in ("left", "right", "disparity"):
            for batch in pair:
                batch[key] = batch[key].double()
        pair[1]["valid"] &= pair[1]["disparity"] > (100 if number == 3 else number)
        pairs.append(pair)
    return pairs


def double(pair: list[dict]) -> dict:
    first, second = pair
    return {key: first[key] + second[key] if key == "path" else torch.cat([first[key], second[key]]) for key in first}


def fit(folder: Path, ranks: Ranks, batches: list, name: str, network=None, **settings):
    """Train with SGD on batches made by hand; returns (module, network, figures)."""
    source = folder / "list.txt"
    source.touch()
    dataset = {"max_disparity": 64, "train_dataset": {"data_sources": [{"data_file": str(source)}]}}
    optim = {"optimizer": "SGD", "lr": 1e-2, "warmup_steps": 0}
    settings = {"results_dir": str(folder), "num_epochs": 1, "optim": optim} | settings
    spec = spec_from_dict("train", {"dataset": dataset, "model": MODEL, "train": settings})
    torch.manual_seed(0)
    network = network or create_model(preset="tiny", train_iters=1)
    if ranks.world > 1 and ranks.gpu:
        synchronise_batch_norm(network)
    with joined(ranks):
        trainer = pl.Trainer(
            accelerator="gpu" if ranks.gpu else "cpu", devices=len(ranks.devices), strategy=strategy(name, ranks),
            max_epochs=1, logger=False,
            plugins=[AtomicCheckpointIO(), *([GivenRanks(ranks)] if ranks.world > 1 else [])],
            accumulate_grad_batches=spec.train.accumulate, gradient_clip_val=0.1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        module = StereoModule(network, spec)
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
        weights = {name: whole(value).cpu() for name, value in network.state_dict().items()}
    figures = {"steps": trainer.global_step, "loss": float(trainer.callback_metrics["train_loss_epoch"])}
    return module, weights, figures


def train(folder: Path, status: StatusLog, ranks: Ranks, name: str = "ddp") -> Outcome:
    """Ten steps of two batches in float64 with SGD, without dropout, on CPUs with batch normalisation frozen.

    The weights go to a file.
    """
    pairs = double_batches()
    batches = [double(pair) for pair in pairs] if ranks.world == 1 else [pair[ranks.rank] for pair in pairs]
    torch.manual_seed(0)
    network = create_model(preset="tiny", train_iters=2).double()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout) or (isinstance(layer, _BatchNorm) and not ranks.gpu):
            layer.eval()  # dropout is drawn anew on every rank, and statistics over ranks need GPUs
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    _, weights, figures = fit(folder, ranks, batches, name, network, accumulate=2)
    moved = [name for name, value in before.items() if not torch.equal(value, weights[name])]
    torch.save({"weights": weights, "moved": moved}, folder / f"{ranks.world}_{ranks.rank}.pth")
    return Outcome("", kpi=figures)


def train_sharded(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    return train(folder, status, ranks, "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize("several", [train, train_sharded], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("gpu", [False, pytest.param(True, marks=[pytest.mark.gpu, TWO_GPUS])], ids=["cpu", "gpu"])
def test_two_ranks_equal_one_with_the_double_batch(tmp_path, several, gpu):
    """The loss weighs valid pixels over both; a mean of means would differ from the third digit on."""
    one = in_ranks(train, tmp_path, StatusLog(None), Ranks((0,), gpu))
    two = in_ranks(several, tmp_path, StatusLog(None), Ranks((0, 1), gpu) if gpu else Ranks((0, 0)))
    assert one.kpi["steps"] == two.kpi["steps"] == STEPS
    assert two.kpi["loss"] == pytest.approx(one.kpi["loss"], rel=1e-9)
    alone, first, second = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert len(alone["moved"]) > 500 and alone["moved"] == first["moved"]
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=1e-9, msg=name)
        assert torch.equal(first["weights"][name], second["weights"][name]), name


def skip_a_step(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    """Three steps; rank 1 meets a NaN in the second."""
    batches = [make_batch(2 * number + ranks.rank, spoilt=(number, ranks.rank) == (1, 1)) for number in range(3)]
    module, weights, figures = fit(folder, ranks, batches, "ddp", nonfinite="skip")
    torch.save(weights, folder / f"{ranks.rank}.pth")
    return Outcome("", kpi=figures | {"skipped_steps": module.guard.skipped})


def fail_at_a_step(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    return fit(folder, ranks, [make_batch(ranks.rank, spoilt=ranks.rank == 1)], "ddp")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    kpi = in_ranks(skip_a_step, tmp_path, StatusLog(None), Ranks((0, 0))).kpi
    assert kpi["skipped_steps"] == 1 and math.isfinite(kpi["loss"])
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    for name, value in first.items():
        assert value.isfinite().all(), name
        assert torch.equal(value, second[name]) or "running_" in name, name
    assert [path.stem[-6:] for path in (tmp_path / "nonfinite").glob("*.pth")] == ["rank_1"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_fails_all_with_its_images(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan at step 0 .* images pair1\.png; see .*rank_1\.json"):
        in_ranks(fail_at_a_step, tmp_path, StatusLog(None), Ranks((0, 0)))


@pytest.mark.parametrize(
    "config",
    [{}, {"n_gru_layers": 1}, {"n_gru_layers": 2, "corr_levels": 1}, {"variant": "tao"},
     {"variant": "tao", "disparity_attention": "heads"}, {"train_iters": 1}],
)  # fmt: skip
def test_every_trained_weight_gets_a_gradient(config):
    """Else ranks would wait for its gradient, or have to search the graph for it in every step."""
    network = create_model(preset="tiny", **{"train_iters": 2} | config)
    batch = make_batch(0)
    init, disparities = network(batch["left"], batch["right"])
    (init.mean() + sum(d.mean() for d in disparities)).backward()
    missing = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_synchronised_norms_keep_their_names_and_ties():
    """Some norms stand under two names; torch's own conversion makes two of them, whose statistics part on a GPU."""
    network = create_model(preset="tiny")
    names = {name: id(module) for name, module in network.named_modules(remove_duplicate=False)
             if isinstance(module, _BatchNorm)}  # fmt: skip
    before = network.state_dict()
    assert len(set(names.values())) < len(names)
    synchronise_batch_norm(network)
    modules = dict(network.named_modules(remove_duplicate=False))
    new = {name: id(modules[name]) for name in names}
    assert all(isinstance(modules[name], torch.nn.SyncBatchNorm) for name in names)
    assert {(names[a] == names[b]) for a in names for b in names if new[a] == new[b]} == {True}
    assert len(set(new.values())) == len(set(names.values()))
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
