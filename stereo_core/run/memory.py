"""An estimate of the memory that a forward pass needs, logged before the pass can run out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
GIB = 2**30
MOST = 2**14  # bytes per pixel: more than the largest network needs at max_disparity 1024


def announced(
    predict: Callable[[Tensor, Tensor], Tensor], network: nn.Module, verb: str, half: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap `predict`: before a batch that is larger than all earlier ones, log the memory it needs and what is free.

    Warns if too little is free. No estimate is made, because it takes seconds, if even the largest network would fit.
    `half`: the network runs in half precision. A failed estimate never stops the run; it is logged at DEBUG level.
    """
    largest = 0

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        nonlocal largest
        pixels = left_B3HW[:, 0].numel()
        if pixels > largest:
            largest = pixels
            try:
                free = free_bytes(left_B3HW.device)
                if MOST * pixels > free:
                    _say(network, left_B3HW, free, verb, half)
            except Exception:
                LOG.debug("the memory estimate failed", exc_info=True)
        return predict(left_B3HW, right_B3HW)

    return run


def _say(network: nn.Module, left_B3HW: Tensor, free: int, verb: str, half: bool) -> None:
    from stereo_core.models.memory import pass_bytes  # this import takes half of the estimate's time

    batch, _, height, width = left_B3HW.shape
    with torch.autocast(left_B3HW.device.type, torch.float16) if half else nullcontext():
        needed = pass_bytes(network, (height, width), batch)
    size = f"{width} x {height} px"
    what = f"an image of {size}" if batch == 1 else f"a batch of {batch} images of {size}"
    text = f"{what} needs about {needed / GIB:.2f} GiB of memory; {free / GIB:.2f} GiB are free"
    if needed <= free:
        LOG.info(text)
        return
    section = "infer_dataset" if verb == "inference" else "test_dataset"
    spec = verb != "predict"  # which has no keys
    remedies = {
        f"dataset.{section}.batch_size=1": spec and batch > 1,
        "inference.tile=true": verb == "inference",
        f"{verb}.precision=fp16": spec and left_B3HW.device.type == "cuda" and not half,
    }
    smaller = "smaller images" if spec else "smaller images (depth_net predict: --scale)"
    ways = ", ".join(way for way, possible in remedies.items() if possible) or smaller
    LOG.warning("%s: it may not fit. To use less memory: %s", text, ways)


def free_bytes(device: torch.device) -> int:
    """Free bytes for tensors on `device`.

    Raises:
        OSError: this system does not report free memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([available, *_container_rest()])


def _container_rest() -> list[int]:
    """Bytes left below the container's memory limit (file cache not counted); empty if there is no limit."""
    for folder, most, now in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit = Path(folder, most)
        if not limit.is_file() or not limit.read_text().strip().isdigit():
            continue
        counts = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        used = int(Path(folder, now).read_text()) - int(counts.get("inactive_file", 0))
        return [max(0, int(limit.read_text()) - used)]
    return []
