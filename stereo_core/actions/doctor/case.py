"""The input of doctor's checks: a spec, a machine, and results of earlier checks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stereo_core.cores import usable_cores
from stereo_core.data.annotations import Sample
from stereo_core.models.foundation_stereo.model import StereoNetwork
from stereo_core.spec.dataset import Split
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.training.distribution import Ranks

GIB = 2**30
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """Bytes of memory, and free bytes of /dev/shm; None if there is no such folder."""

    gpus: tuple[Gpu, ...]
    cores: int
    memory: int
    shared_memory: int | None


def this_machine() -> Machine:
    """The machine as this process may use it, including a container's limits."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return Machine(
        tuple(Gpu(gpu.name, gpu.total_memory, (gpu.major, gpu.minor)) for gpu in gpus),
        usable_cores(),
        min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_container_limit()]),
        shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
    )


def _container_limit() -> list[int]:
    """The memory limit of cgroup version 2 or 1 in bytes; empty if there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        if text.isdigit():
            return [int(text)]
    return []


@dataclass
class Case:
    """Attributes that the checks set:

    network: None if it cannot be built.
    ranks: one process on the CPU until the devices are known.
    pairs: (sample, data source) of each split, without samples that have a faulty file.
    largest: the largest height and width in px among the samples read, for each split.
    copies: number of checkpoint copies if the file system of the results has no links.
    kpi: figures for status.json.
    """

    spec: ExperimentSpec
    machine: Machine
    network: StereoNetwork | None = None
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    pairs: dict[str, list[tuple[Sample, Any]]] = field(default_factory=dict)
    largest: dict[str, tuple[int, int]] = field(default_factory=dict)
    copies: int = 0
    kpi: dict[str, float] = field(default_factory=dict)

    def section(self, split: str) -> Split:
        section: Split = getattr(self.spec.dataset, f"{split}_dataset")
        return section

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of a training sample in px: the crop, padded to multiples of 32."""
        height, width = self.section("train").augmentation.crop_size
        return height + -height % 32, width + -width % 32

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        batches = len(self.pairs.get("train", [])) // (self.section("train").batch_size * self.ranks.world)
        return -(-batches // self.spec.train.accumulate)
