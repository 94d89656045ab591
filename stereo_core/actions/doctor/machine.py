"""doctor's checks of the machine: devices, processor, shared memory, links, disk, memory of a training step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator

from stereo_core.actions.doctor.case import GIB, SPLITS, Case
from stereo_core.files import COPY, links_in
from stereo_core.report.findings import Finding, ok, problem, warning
from stereo_core.spec import results_dir
from stereo_core.spec.choice import BEST, LATEST
from stereo_core.training.distribution import resolve
from stereo_core.training.memory import checkpoint_bytes, step_memory
from stereo_core.values import counted

PREFETCHED = 2  # batches that each loader process holds ready, torch's default
PIXEL_BYTES = 29  # a pixel of a sample: two float32 RGB images, a float32 disparity, a mask
NEARLY_ALL = 0.9  # of a memory: beyond lies what the estimate does not count


def devices(case: Case) -> Iterator[Finding]:
    """The processes and GPUs that the run asks for are there, and can do its arithmetic."""
    machine, precision = case.machine, case.spec.train.precision
    case.ranks = resolve(case.spec.train, "train", len(machine.gpus))
    if not machine.gpus:
        if precision == "fp16":
            yield problem("no GPU is here, and fp16 needs one", "train.precision=bf16 or fp32")
        elif case.network.config.preset if case.network else case.spec.model.preset:
            yield ok(f"on the CPU, processes: {case.ranks.world}, {precision}")
        else:
            yield warning("no GPU is here: a network of full size trains on the CPU, very slowly", "use a GPU")
        return
    for index in case.ranks.devices:
        gpu = machine.gpus[index]
        name = f"GPU {index}: {gpu.name}, {gpu.memory / GIB:.1f} GiB"
        if precision == "bf16" and gpu.capability < (8, 0):
            yield warning(f"{name}: has no arithmetic for bf16, which is slow there", "train.precision=fp16 or fp32")
        else:
            yield ok(f"{name}, {precision}")


def cores(case: Case) -> Iterator[Finding]:
    """Loader processes find cores to run on."""
    workers, processes = case.section("train").workers, len(case.ranks.devices)
    wanted, there = (workers + 1) * processes, case.machine.cores
    if workers == 0:
        yield warning("no loader processes: each step waits until its pairs are read", "dataset.train_dataset.workers")
    elif wanted > there:
        yield warning(
            f"{processes} x {workers} loader processes and {processes} that train, on {counted(there, 'core')}: they "
            "compete for them",
            f"dataset.train_dataset.workers={max(1, there // processes - 1)}, or ask for {wanted} cores",
        )
    else:
        yield ok(f"{processes} x {workers} loader processes on {counted(there, 'core')}")


def shared_memory(case: Case) -> Iterator[Finding]:
    """The batches that loader processes hold ready fit in /dev/shm."""
    free = case.machine.shared_memory
    if free is None:
        return
    sizes = {"train": case.crop, "val": case.largest.get("val")}
    needed = max(_prefetched(case, split, size) for split in SPLITS if (size := sizes[split]))
    text = f"loader processes hold up to {needed / GIB:.2f} GiB of batches, {free / GIB:.2f} GiB are free in /dev/shm"
    if needed > free:
        yield problem(text, "lower workers or batch_size, or give the container more (Kubernetes: an emptyDir of "
                            "medium Memory at /dev/shm)")  # fmt: skip
    else:
        yield ok(text)


def _prefetched(case: Case, split: str, size: tuple[int, int]) -> int:
    """Bytes that all loader processes of this machine hold ready."""
    section = case.section(split)
    workers = min(section.workers, case.machine.cores, len(case.pairs.get(split, [])))
    return workers * PREFETCHED * section.batch_size * size[0] * size[1] * PIXEL_BYTES * len(case.ranks.devices)


def links(case: Case) -> Iterator[Finding]:
    """The names of the newest and the best checkpoint can be links."""
    folder = results_dir(case.spec, "train")
    kind = links_in(folder)
    if kind != COPY:
        yield ok(f"{LATEST} and {BEST} will be {kind}s in {folder}")
        return
    case.copies = 2
    yield warning(
        f"the file system of {folder} has no links: {LATEST} and {BEST} will be copies, which take the time and the "
        "room of two checkpoints",
        "another results_dir",
    )


def disk(case: Case) -> Iterator[Finding]:
    """The checkpoints that are kept fit on the disk of the results."""
    if case.network is None:
        yield warning("not estimated: the network could not be built")
        return
    folder = results_dir(case.spec, "train")
    free = shutil.disk_usage(folder).free
    one, count = checkpoint_bytes(case.network, case.spec.train), kept_checkpoints(case) + case.copies
    text = (
        f"{counted(count, 'checkpoint')} of {one / GIB:.2f} GiB: {count * one / GIB:.1f} GiB in all, "
        f"{free / GIB:.1f} GiB are free in {folder}"
    )
    if count * one > free:
        yield problem(text, "another results_dir, or lower train.keep_checkpoints (0 keeps all)")
    else:
        yield ok(text)


def kept_checkpoints(case: Case) -> int:
    """The most that lie there at once: the newest, the best one, and the one that is being written."""
    train = case.spec.train
    if train.keep_checkpoints:
        return train.keep_checkpoints + 2
    steps = train.num_epochs * (case.steps if train.checkpoint_interval_unit == "step" else 1)
    return math.ceil(steps / train.checkpoint_interval) + 1


def memory(case: Case) -> Iterator[Finding]:
    """One training step fits in the memory of the GPU, or of the machine."""
    if case.network is None:
        yield warning("not estimated: the network could not be built")
        return
    train, batch, gpus = case.spec.train, case.section("train").batch_size, case.machine.gpus
    device = "cuda" if gpus else "cpu"
    step = step_memory(case.network, train, case.crop, batch, device=device, ranks=case.ranks.world)
    there = min(gpus[index].memory for index in case.ranks.devices) if gpus else case.machine.memory
    case.kpi["memory_gib"] = step.total / GIB
    height, width = case.crop
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in vars(step).items() if size)
    text = (
        f"a step takes {step.total / GIB:.2f} GiB of {there / GIB:.1f} ({parts}) with batch {batch}, {width}x{height} "
        f"px, {case.network.config.train_iters} iterations, {train.precision}"
    )
    mend = "lower dataset.train_dataset.batch_size or augmentation.crop_size" + (
        "" if train.activation_checkpoint else ", or train.activation_checkpoint=true"
    )
    processes = 1 if gpus else len(case.ranks.devices)
    if step.total * processes > there:
        yield problem(text, mend)
    elif step.total * processes > NEARLY_ALL * there:
        yield warning(f"{text}; libraries take some beside that", mend)
    else:
        yield ok(text)
