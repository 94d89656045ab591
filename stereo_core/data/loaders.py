"""Data loaders for the data sets of a spec."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sized
from functools import partial
from itertools import islice
from typing import Any, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from stereo_core.cores import usable_cores
from stereo_core.data.datasets import StereoDataset, build_dataset, collate
from stereo_core.errors import DataError
from stereo_core.values import counted

# How long a loader process survives a SIGTERM, unless it is ended before. A training still finishes its step. Python
# itself sends one at its end to the processes of a run that failed, and waits for them.
GRACE_SECONDS = 25
SHORT_GRACE_SECONDS = 0.2
MAX_SKIPPED = 0.1  # share of an epoch; if more is missing, a whole folder is lost

_SPLIT_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("infer",)}

logger = logging.getLogger(__name__)


class StereoLoaders:
    """Loaders over `dataset.{train,val,test,infer}_dataset` of a spec.

    Training batches are dicts of stacked tensors (see `StereoDataset`), shuffled by `train.seed`; an incomplete last
    batch is dropped. All other batches are lists of items, because image sizes differ; every sample occurs exactly
    once, in the same batch on any number of ranks.
    """

    def __init__(self, spec: Any) -> None:
        super().__init__()  # Lightning's constructor, in StereoDataModule
        self.spec = spec
        self.datasets: dict[str, StereoDataset] = {}
        self._told: set[str] = set()  # splits whose fewer loader processes are logged
        self._made: list[StereoLoader] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the annotation lists of the stage (fit, validate, test, predict).

        Raises:
            DataError: a list is unusable, or too short for a training batch on every device or for all processes.
        """
        for split in _SPLIT_OF_STAGE[stage or "fit"]:
            if split not in self.datasets and (split != "val" or self.has("val")):
                self.datasets[split] = build_dataset(self.spec, split)
                self._check_size(split)

    def _check_size(self, split: str) -> None:
        samples, processes, batch_size = len(self.datasets[split]), _ranks()[0], self._section(split).batch_size
        if split == "train" and samples < batch_size * processes:
            raise DataError(
                f"dataset.train_dataset: it has {counted(samples, 'sample')}, but one step needs "
                f"{batch_size * processes}"
                f" (batch_size {batch_size} on {counted(processes, 'device')}); lower batch_size or add samples"
            )
        if split == "val" and math.ceil(samples / batch_size) < processes:
            raise DataError(
                f"dataset.val_dataset: {counted(samples, 'sample')} in batches of {batch_size} are too few for "
                f"{processes} "
                "processes, which need a batch each; lower batch_size or add samples"
            )

    def has(self, split: str) -> bool:
        """Whether the spec names a data source for the split."""
        return bool(self._section(split).data_sources)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches."""
        dataset, seed = self.datasets["train"], self.spec.train.seed
        sampler = EpochSampler(dataset, *_ranks(), shuffle=True, seed=seed, drop_last=True)
        return self._loader("train", sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Whole images in order; an empty list if the spec names no validation data."""
        return self._ordered("val") if "val" in self.datasets else []

    def test_dataloader(self) -> StereoLoader:
        """Whole images in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> StereoLoader:
        """Whole images in order, with or without ground truth."""
        return self._ordered("infer")

    def stop(self) -> None:
        """End the processes that a loader has kept. At the end of the program they would be asked by SIGTERM, and go on
        for GRACE_SECONDS, as if the whole group had got it."""
        for loader in self._made:
            loader.stop()

    def _section(self, split: str) -> Any:
        return getattr(self.spec.dataset, f"{split}_dataset")

    def _ordered(self, split: str) -> StereoLoader:
        sampler = OrderedSampler(self.datasets[split], *_ranks(), self._section(split).batch_size)
        return self._loader(split, sampler, collate_fn=collate)

    def _loader(self, split: str, sampler: DistributedSampler[Any], **options: Any) -> StereoLoader:
        section, dataset = self._section(split), self.datasets[split]
        in_training = split in ("train", "val")
        workers, fewer = loader_processes(split, section.workers, len(dataset), usable_cores())
        if fewer and "workers" in section.model_fields_set and split not in self._told:
            self._told.add(split)
            logger.info("%s", fewer)
        loader = StereoLoader(
            dataset,
            batch_size=section.batch_size,
            sampler=sampler,
            num_workers=workers,
            # evaluate and inference pin their stacked batches themselves, and need the processes before CUDA starts
            pin_memory=in_training and section.pin_memory and torch.cuda.is_available(),
            worker_init_fn=partial(start_worker, grace=GRACE_SECONDS if in_training else SHORT_GRACE_SECONDS),
            persistent_workers=in_training and workers > 0,
            # Python 3.14 would start them from a server process; both would outlive a training that was killed.
            multiprocessing_context="fork" if workers else None,
            **options,
        )
        self._made.append(loader)
        return loader


def loader_processes(split: str, asked: int, pairs: int, cores: int) -> tuple[int, str]:
    """The loader processes of a training process, and a text if they are fewer than `workers` asks for."""
    workers = min(asked, cores, pairs)
    fewer = f"dataset.{split}_dataset.workers: using {workers} instead of {asked}; there are no more CPU cores or pairs"
    return workers, fewer if workers < asked else ""


class StereoLoader(DataLoader[Any]):
    """A DataLoader that reports its workers' data errors as they were raised, without the worker's traceback.

    Unreadable training pairs (`dataset.on_error: skip`) are logged once each and counted in every epoch.

    Attributes:
        waited: total seconds spent waiting for batches.
    """

    sampler: EpochSampler | OrderedSampler
    waited = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._named: set[str] = set()

    @contextlib.contextmanager
    def started(self) -> Iterator[Iterator[Any]]:
        """The batches of `iter`, but the processes start now, and end if the block fails.

        They read the first batches while the caller loads the network. If a process dies meanwhile, the block ends
        first.
        """
        batches = self._checked(super().__iter__())
        try:
            # torch raises a death wherever the main thread is; a reader of weights would take it for its file's error
            with _postponed(signal.SIGCHLD):
                yield batches
        except BaseException:
            batches.close()
            raise

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch names a class of its own, no iterator
        """Yield batches; DataError with the worker's message, also if more than MAX_SKIPPED of the epoch is
        unreadable."""
        yield from self._checked(super().__iter__())

    def stop(self) -> None:
        """End its processes, if they are kept for a next iteration."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined] # PyTorch has no public way
            self._iterator = None

    def _get_iterator(self) -> Any:
        """Start the processes. A Ctrl-C meanwhile would end half-started ones with an error of their own."""
        with _postponed(signal.SIGINT, signal.SIGTERM):
            return super()._get_iterator()

    def _checked(self, batches: Iterator[Any]) -> Generator[Any]:
        skipped = 0
        try:
            for batch in self._timed(batches):
                if isinstance(batch, dict):  # training
                    self._name(batch["unreadable"])
                    skipped += int(batch["skipped"].sum())
                    self._check(skipped)
                yield batch
        except DataError as error:
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from error

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.monotonic() - start
            yield batch

    def _name(self, unreadable: list[str]) -> None:
        for message in sorted({*unreadable} - {"", *self._named}):
            mend = "mend the file, or remove its line from the list"
            logger.warning("skipped a pair and used another one instead: %s; %s", message, mend)
            self._named.add(message)

    def _check(self, skipped: int) -> None:
        if skipped > MAX_SKIPPED * len(self.sampler):
            raise DataError(
                f"dataset.on_error is skip, but {skipped} of this epoch's {len(self.sampler)} pairs cannot be used, "
                "which"
                f" is more than {MAX_SKIPPED:.0%}; repair the pairs named above or remove them from the list"
            )


class EpochSampler(DistributedSampler[Any]):
    """Reshuffles every epoch and yields (index, epoch), so that a sample depends only on these and the seed.

    Attributes:
        start: samples of this rank that the next iteration skips, because a resumed run has already used them.
    """

    start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield this rank's part of the epoch's permutation."""
        start, self.start = self.start, 0
        return islice(((index, self.epoch) for index in super().__iter__()), start, None)


class OrderedSampler(DistributedSampler[Any]):
    """Every sample exactly once over all ranks, in the batches of one process; rank r gets batches r, r + ranks, ...

    The last bits of a result may depend on the other images in its batch, so reproducible metrics need the same batches
    on any number of ranks. DistributedSampler itself repeats samples, which would distort metrics.

    Args:
        batch_size: the loader's.
    """

    def __init__(self, dataset: Sized, ranks: int, rank: int, batch_size: int) -> None:
        super().__init__(cast("Dataset[Any]", dataset), ranks, rank, shuffle=False)  # of which torch asks the length
        self.count = len(dataset)
        self.batch_size = batch_size

    @property
    def batches_on_every_rank(self) -> int:
        """The number of batches of the rank with the fewest."""
        return math.ceil(self.count / self.batch_size) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this rank's batches in order; only its last batch may be incomplete."""
        count, size = self.count, self.batch_size
        for start in range(self.rank * size, count, self.num_replicas * size):
            yield from range(start, min(start + size, count))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _ranks() -> tuple[int, int]:
    """(number of processes, own rank)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


@contextlib.contextmanager
def _postponed(*signals: signal.Signals) -> Iterator[None]:
    """Handle these signals only after the block; not at all if it fails. Only the main thread handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    handlers = {one: signal.signal(one, lambda number, _: seen.append(number)) for one in signals}
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    for number in dict.fromkeys(seen):
        signal.raise_signal(number)


def start_worker(_: int, grace: float = GRACE_SECONDS) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Terminals, timeout(1) and Slurm signal all processes at once, and their parent must not take that for a crash.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_leave_later, grace))


def _leave_later(grace: float, *_: object) -> None:
    timer = threading.Timer(grace, os._exit, (0,))
    timer.daemon = True
    timer.start()
