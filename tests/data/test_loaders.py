from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from samples import make_pair, make_spec
from torch.utils.data import DataLoader

from stereo_core.data.annotations import write_annotations
from stereo_core.data.loaders import GRACE_SECONDS, EpochSampler, OrderedSampler, StereoLoaders
from stereo_core.errors import DataError
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.training.distribution import Ranks, joined


class BrokenError(Exception):
    """What a test breaks with."""


def module(folder, split="train", **section):
    section = {"augmentation": {"crop_size": [32, 64]}, **section}
    spec = make_spec(split, [{"data_file": str(folder / "list.txt"), "dataset_name": "Kitti"}], **section)
    loaded = StereoLoaders(spec)
    loaded.setup({"train": "fit", "val": "validate", "test": "test", "infer": "predict"}[split])
    return loaded


def epoch(loader, number=0):
    loader.sampler.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize(("asked", "lines"), [(True, 1), (False, 0)])
def test_fewer_processes_are_logged_once_if_the_spec_asks_for_more(pairs, caplog, asked, lines):
    caplog.set_level(logging.INFO)
    loaders = module(pairs, "test", workers=99)
    if not asked:  # as if 99 were the default
        loaders.spec.dataset.test_dataset.model_fields_set.remove("workers")
    for _ in range(2):
        assert loaders.test_dataloader().num_workers < 99
    assert caplog.text.count("dataset.test_dataset.workers: using") == lines


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_do_not_depend_on_workers(pairs, workers):
    loader = module(pairs, batch_size=2, workers=workers).train_dataloader()
    reference = module(pairs, batch_size=2).train_dataloader()
    for number in (0, 1):
        batches = epoch(loader, number)
        assert len(batches) == 2  # five samples: the incomplete batch is dropped
        assert batches[0]["left"].shape == (2, 3, 32, 64) and batches[0]["valid"].dtype == torch.bool
        for batch, expected in zip(batches, epoch(reference, number), strict=True):
            assert batch["index"].tolist() == expected["index"].tolist()
            for name in ("left", "right", "disparity", "valid"):
                assert torch.equal(batch[name], expected[name])


def test_training_order_follows_the_seed_and_changes_with_the_epoch(pairs):
    def order(loader, number):
        return torch.cat([batch["index"] for batch in epoch(loader, number)]).tolist()

    loader = module(pairs).train_dataloader()
    orders = [order(loader, number) for number in range(6)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in orders)
    assert len(set(map(tuple, orders))) > 3
    assert order(module(pairs).train_dataloader(), 3) == orders[3]


def test_too_few_samples_for_a_batch(pairs):
    with pytest.raises(DataError, match=r"train_dataset: it has 5 samples, but one step needs 6 .*batch_size"):
        module(pairs, batch_size=6)


@pytest.mark.parametrize(("split", "loader"), [("val", "val"), ("test", "test"), ("infer", "predict")])
def test_other_batches_are_whole_images_in_order(pairs, split, loader):
    batches = list(getattr(module(pairs, split, batch_size=2), f"{loader}_dataloader")())
    assert [[item["index"] for item in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
    assert batches[0][0]["left"].shape == (3, 40, 70)


def test_validation_is_optional_in_training(pairs):
    assert module(pairs).val_dataloader() == []


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_sample_once_on_any_number_of_ranks_in_the_batches_of_one(batch_size):
    whole = list(DataLoader(range(8), batch_size, collate_fn=list))
    for ranks in (1, 2, 3, 7):
        shares = [OrderedSampler(range(8), ranks, rank, batch_size) for rank in range(ranks)]
        loaders = [list(DataLoader(range(8), batch_size, sampler=share, collate_fn=list)) for share in shares]
        assert [loaders[number % ranks][number // ranks] for number in range(len(whole))] == whole
        assert sum(map(len, loaders)) == len(whole)
        assert [len(share) for share in shares] == [len(list(share)) for share in shares]
        assert {share.batches_on_every_rank for share in shares} == {min(map(len, loaders))}


def test_training_takes_as_many_samples_on_every_rank():
    parts = [list(EpochSampler(range(5), 2, rank, shuffle=True, seed=3, drop_last=True)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    assert len({index for part in parts for index, _ in part}) == 4


def set_up(folder, status, ranks):
    with joined(ranks, "gloo"):
        module(folder, "val", batch_size=2)


@pytest.mark.slow
def test_fewer_validation_batches_than_ranks_are_refused(tmp_path):
    """Lightning would leave out the validation on some ranks, and the others would wait for them."""
    write_annotations(tmp_path / "list.txt", [make_pair(tmp_path, name) for name in ("one", "two")])
    with pytest.raises(
        DataError, match=r"dataset\.val_dataset: 2 samples in batches of 2 are too few for 2 .*lower batch_size"
    ):
        in_ranks(set_up, tmp_path, StatusLog(None), Ranks((0, 0)))


def read_on(folder, pids):
    multiprocessing.set_start_method("forkserver", force=True)  # the default of Python 3.14
    loader = module(folder, workers=1).train_dataloader()
    next(iter(loader))
    pids.put([worker.pid for worker in loader._iterator._workers])
    time.sleep(300)


@pytest.mark.slow
def test_loader_processes_do_not_outlive_a_process_that_was_killed(pairs):
    context = multiprocessing.get_context("spawn")
    pids = context.Queue()
    reader = context.Process(target=read_on, args=(pairs, pids))
    reader.start()
    (worker,) = pids.get(timeout=120)
    reader.kill()
    end = time.monotonic() + 30  # they look every 5 s
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_processes_start_at_once_and_end_when_the_caller_fails(pairs):
    loader = module(pairs, "test", workers=2).test_dataloader()
    with pytest.raises(BrokenError), loader.started() as batches:
        assert multiprocessing.active_children()
        raise BrokenError
    assert not multiprocessing.active_children()
    assert not list(batches)


def test_started_early_the_batches_are_the_same(pairs):
    loader = module(pairs, "test", batch_size=2, workers=2).test_dataloader()
    with loader.started() as batches:
        pass
    assert [[item["index"] for item in batch] for batch in batches] == [[0, 1], [2, 3], [4]]


def test_a_process_that_dies_early_does_not_disturb_what_its_caller_reads(pairs):
    """A full /dev/shm kills them; torch raises that in the middle of whatever the main thread does."""
    loader, done = module(pairs, "test", workers=1).test_dataloader(), False
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* killed by signal"), loader.started():
        (process,) = multiprocessing.active_children()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        time.sleep(0.1)
        done = True
    assert done


def test_a_ctrl_c_while_a_process_starts_is_a_ctrl_c(pairs):
    """A terminal sends it to both processes; here at the first file that the new one opens."""
    run = script(f"""
import os, signal, sys
from test_loaders import Path, module
parent, opened = os.getpid(), []
def hear(event, _):
    if event == "open" and os.getpid() != parent and not opened:
        opened.append(event)
        os.kill(0, signal.SIGINT)
sys.addaudithook(hear)
try:
    next(iter(module(Path({str(pairs)!r}), "test", workers=1).test_dataloader()))
except KeyboardInterrupt:
    sys.exit(130)
""")
    assert (run.returncode, run.stderr) == (130, "")


def test_processes_that_a_failed_run_forgets_do_not_hold_up_its_end(pairs):
    """An exception may keep an iterator alive; then Python ends the processes, and waits for them."""
    start = time.monotonic()
    run = script(f"""
from test_loaders import Path, module
batches = iter(module(Path({str(pairs)!r}), "test", workers=1).test_dataloader())
next(batches)
""")
    assert (run.returncode, run.stderr) == (0, "")
    assert time.monotonic() - start < GRACE_SECONDS / 2


def script(code):
    path = os.pathsep.join(sys.path)
    return subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
                          capture_output=True, text=True, check=False)  # fmt: skip


def test_an_error_in_a_worker_reads_as_it_was_raised(pairs):
    path = pairs / "left/002.png"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError) as error:
        list(module(pairs, "test", workers=1).test_dataloader())
    assert str(error.value).startswith(f"{pairs / 'list.txt'}:3: {path}: the image is truncated or damaged")
    assert "Traceback" not in str(error.value)


# -- dataset.on_error -------------------------------------------------------------------------------------------------


def damaged(folder, count, bad, on_error="skip", workers=0):
    """A training module of `count` pairs, of which those in `bad` can not be read."""
    rows = [make_pair(folder, f"{n:03d}", seed=n) for n in range(count)]
    write_annotations(folder / "list.txt", rows)
    made = module(folder, workers=workers)
    made.datasets["train"].skip_unreadable = on_error == "skip"
    for n in bad:
        (folder / f"left/{n:03d}.png").write_bytes(b"")
    return made


def test_an_unreadable_pair_ends_the_run(tmp_path):
    with pytest.raises(DataError, match=r"list\.txt:4: .*left/003\.png: .*empty"):
        epoch(damaged(tmp_path, 10, [3], "fail").train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_pair_gives_its_place_to_another(tmp_path, caplog, workers):
    loader = damaged(tmp_path, 10, [3], workers=workers).train_dataloader()
    for number in (0, 1):
        with caplog.at_level(logging.WARNING):
            batches = epoch(loader, number)
        asked = [index for index, _ in loader.sampler]
        given = torch.cat([batch["index"] for batch in batches]).tolist()
        assert torch.cat([batch["skipped"] for batch in batches]).tolist() == [int(index == 3) for index in asked]
        assert [one for one, other in zip(asked, given, strict=True) if one != other] == [3]
    warnings = [record.getMessage() for record in caplog.records if "003.png" in record.getMessage()]
    assert len(warnings) == 1 and f"{tmp_path / 'list.txt'}:4: " in warnings[0]


def test_what_stands_in_follows_from_seed_epoch_and_index(tmp_path):
    first, again = (damaged(tmp_path, 10, [3]).datasets["train"] for _ in range(2))
    others = [first[3, number]["index"] for number in range(20)]
    assert others == [again[3, number]["index"] for number in range(20)]
    assert 3 not in others and len(set(others)) > 4  # not always the same one


def test_too_many_unreadable_pairs_end_the_run(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.on_error is skip, but 2 of this epoch's 10 pairs .* more than 10%"):
        epoch(damaged(tmp_path, 10, [3, 7]).train_dataloader())


def test_a_lost_folder_ends_the_run(tmp_path):
    with pytest.raises(DataError, match=r"list\.txt:\d+: .*; 10 other pairs, drawn at random, cannot be used either"):
        damaged(tmp_path, 10, range(10)).datasets["train"][4]


def test_validation_never_skips(tmp_path):
    write_annotations(tmp_path / "list.txt", [make_pair(tmp_path, f"{n:03d}", seed=n) for n in range(20)])
    source = [{"data_file": str(tmp_path / "list.txt"), "dataset_name": "Kitti"}]
    for split, stage, loader in (("val", "validate", "val_dataloader"), ("test", "test", "test_dataloader")):
        spec = make_spec(split, source)
        spec.dataset.on_error = "skip"
        made = StereoLoaders(spec)
        made.setup(stage)
        (tmp_path / "right/005.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"list\.txt:6: "):
            list(getattr(made, loader)())
        make_pair(tmp_path, "005", seed=5)
