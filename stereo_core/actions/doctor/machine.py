"""doctor's checks of the machine: devices, CPU cores, shared memory, links, disk, memory of a training step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator

from stereo_core.actions.doctor.case import GIB, SPLITS, Case
from stereo_core.data.loaders import loader_processes
from stereo_core.files import COPY, links_in
from stereo_core.report.findings import Finding, ok, problem, warning
from stereo_core.spec import results_dir
from stereo_core.spec.choice import BEST, LATEST
from stereo_core.training.distribution import resolve
from stereo_core.training.memory import checkpoint_bytes, step_memory
from stereo_core.values import counted, size_text

PREFETCHED = 2  # batches that each loader process prefetches, torch's default
PIXEL_BYTES = 29  # per pixel of a sample: two float32 RGB images, a float32 disparity, a mask
_NO_NETWORK = "not estimated: the network could not be built"
NEARLY_ALL = 0.9  # share of the memory; the rest is for what the estimate does not count


def devices(case: Case) -> Iterator[Finding]:
    """The requested processes and GPUs exist and support the precision."""
    machine, precision = case.machine, case.spec.train.precision
    case.ranks = resolve(case.spec.train, "train", len(machine.gpus))
    if not machine.gpus:
        if precision == "fp16":
            yield problem("fp16 needs a GPU, but this machine has none", "set train.precision=bf16 or fp32")
        elif case.network.config.preset if case.network else case.spec.model.preset:
            yield ok(f"on the CPU, processes: {case.ranks.world}, {precision}")
        else:
            yield warning("this machine has no GPU: a full-size network trains very slowly on the CPU", "use a GPU")
        return
    for index in case.ranks.devices:
        gpu = machine.gpus[index]
        name = f"GPU {index}: {gpu.name}, {gpu.memory / GIB:.1f} GiB"
        if precision == "bf16" and gpu.capability < (8, 0):
            yield warning(
                f"{name}: bf16 is slow because this GPU does not support it", "set train.precision=fp16 or fp32"
            )
        else:
            yield ok(f"{name}, {precision}")


def cores(case: Case) -> Iterator[Finding]:
    """How many loader processes there will be; several training processes may start more than there are cores."""
    processes, there = len(case.ranks.devices), case.machine.cores
    if case.section("train").workers == 0:
        yield warning(
            "no loader processes: each step waits for its pairs to be read", "set dataset.train_dataset.workers"
        )
        return
    workers, fewer = _workers(case, "train")
    loaders = f"{counted(processes * workers, 'loader process', 'loader processes')} on {counted(there, 'core')}"
    if processes * workers > there:
        ways = [f"set dataset.train_dataset.workers={there // processes}"] * (there >= processes)
        yield warning(
            f"{loaders}: each of the {processes} training processes starts {workers}",
            ", or ".join([*ways, f"request {processes * workers} cores"]),
        )
    else:
        yield ok(f"train starts {loaders}" + (f" ({fewer})" if fewer else ""))


def _workers(case: Case, split: str) -> tuple[int, str]:
    return loader_processes(split, case.section(split).workers, len(case.pairs.get(split, [])), case.machine.cores)


def shared_memory(case: Case) -> Iterator[Finding]:
    """The batches that loader processes prefetch fit in /dev/shm."""
    free = case.machine.shared_memory
    if free is None:
        return
    sizes = {"train": case.crop, "val": case.largest.get("val")}
    needed = max(_prefetched(case, split, size) for split in SPLITS if (size := sizes[split]))
    text = f"loader processes need up to {needed / GIB:.2f} GiB for batches; {free / GIB:.2f} GiB are free in /dev/shm"
    if needed > free:
        yield problem(text, "lower workers or batch_size, or enlarge the container's shared memory (Kubernetes: an "
                            "emptyDir with medium Memory at /dev/shm)")  # fmt: skip
    else:
        yield ok(text)


def _prefetched(case: Case, split: str, size: tuple[int, int]) -> int:
    """Bytes that all loader processes of this machine prefetch."""
    pairs = _workers(case, split)[0] * PREFETCHED * case.section(split).batch_size
    return pairs * size[0] * size[1] * PIXEL_BYTES * len(case.ranks.devices)


def links(case: Case) -> Iterator[Finding]:
    """The names of the newest and the best checkpoint can be links."""
    folder = results_dir(case.spec, "train")
    kind = links_in(folder)
    if kind != COPY:
        yield ok(f"{LATEST} and {BEST} will be {kind}s in {folder}")
        return
    case.copies = 2
    yield warning(
        f"the file system of {folder} does not support links: {LATEST} and {BEST} will be copies, which need the time "
        "and disk space of two checkpoints",
        "choose another results_dir",
    )


def disk(case: Case) -> Iterator[Finding]:
    """The kept checkpoints fit on the disk of the results."""
    if case.network is None:
        yield warning(_NO_NETWORK, "see the check weights")
        return
    folder = results_dir(case.spec, "train")
    free = shutil.disk_usage(folder).free
    one, count = checkpoint_bytes(case.network, case.spec.train), kept_checkpoints(case) + case.copies
    text = (
        f"{counted(count, 'checkpoint')} of {one / GIB:.2f} GiB need {count * one / GIB:.1f} GiB; "
        f"{free / GIB:.1f} GiB are free in {folder}"
    )
    if count * one > free:
        yield problem(text, "choose another results_dir, or lower train.keep_checkpoints (0 keeps all)")
    else:
        yield ok(text)


def kept_checkpoints(case: Case) -> int:
    """The maximum number at once: the newest ones, the best one, and the one being written."""
    train = case.spec.train
    steps = train.num_epochs * (case.steps if train.checkpoint_interval_unit == "step" else 1)
    written = math.ceil(steps / train.checkpoint_interval) + 1
    return min(train.keep_checkpoints + 2, written) if train.keep_checkpoints else written


def memory(case: Case) -> Iterator[Finding]:
    """One training step fits in the memory of the GPU or of the machine."""
    if case.network is None:
        yield warning(_NO_NETWORK, "see the check weights")
        return
    train, batch, gpus = case.spec.train, case.section("train").batch_size, case.machine.gpus
    device = "cuda" if gpus else "cpu"
    step = step_memory(case.network, train, case.crop, batch, device=device, ranks=case.ranks.world)
    there = min(gpus[index].memory for index in case.ranks.devices) if gpus else case.machine.memory
    case.kpi["memory_gib"] = step.total / GIB
    parts = " + ".join(f"{name} {size / GIB:.2f}" for name, size in vars(step).items() if size)
    text = (
        f"a step needs {step.total / GIB:.2f} of {there / GIB:.1f} GiB ({parts}) with batch {batch}, "
        f"{size_text(case.crop)} px, {case.network.config.train_iters} iterations, {train.precision}"
    )
    mend = "lower dataset.train_dataset.batch_size or augmentation.crop_size" + (
        "" if train.activation_checkpoint else ", or set train.activation_checkpoint=true"
    )
    processes = 1 if gpus else len(case.ranks.devices)
    if step.total * processes > there:
        yield problem(text, mend)
    elif step.total * processes > NEARLY_ALL * there:
        yield warning(f"{text}; libraries need some more", mend)
    else:
        yield ok(text)
