"""What a pass of a network will hold, said before it runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

LOG = logging.getLogger(__name__)
GIB = 2**30
SMALL = 2**16  # pixels of a batch up to which the largest network needs less than half a GiB: not worth an estimate
MOST = GIB // 2 // SMALL  # bytes a pixel


def announced(
    predict: Callable[[Tensor, Tensor], Tensor], network: nn.Module, verb: str, half: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """Predict; before images larger than all so far, say what they need and what is free, and warn where it is less.

    Where nobody reads the log's information, only what may be too large is estimated.
    `half`: the network runs in half precision. No run stops here: an estimate that fails leaves a line for debugging.
    """
    largest = SMALL

    def run(left_B3HW: Tensor, right_B3HW: Tensor) -> Tensor:
        nonlocal largest
        pixels = left_B3HW[:, 0].numel()
        if pixels > largest:
            largest = pixels
            try:
                free = free_bytes(left_B3HW.device)
                if LOG.isEnabledFor(logging.INFO) or MOST * pixels > free:  # the estimate takes seconds
                    _say(network, left_B3HW, free, verb, half)
            except Exception:
                LOG.debug("no estimate of memory", exc_info=True)
        return predict(left_B3HW, right_B3HW)

    return run


def _say(network: nn.Module, left_B3HW: Tensor, free: int, verb: str, half: bool) -> None:
    from stereo_core.models.memory import pass_bytes  # half of what it takes is this import

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
    remedies = {
        f"dataset.{section}.batch_size=1": batch > 1,
        "inference.tile=true": verb == "inference",
        f"{verb}.precision=fp16": left_B3HW.device.type == "cuda" and not half,
    }
    ways = ", ".join(way for way, possible in remedies.items() if possible) or "smaller images"
    LOG.warning("%s: it may not fit. What takes less: %s", text, ways)


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors on `device` can still get.

    Raises:
        OSError: this system does not say.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([available, *_container_rest()])


def _container_rest() -> list[int]:
    """Bytes that the container may still take, the cache of files not counted; empty where there is no limit."""
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
