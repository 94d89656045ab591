"""The endless, seeded sequence of rich scenes: one by one for files and loaders, in batches on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from stereo_core.data.synthetic.appearance import photograph
from stereo_core.data.synthetic.layout import draw_layout
from stereo_core.data.synthetic.render import render


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: how threads split the pixels changes the last bits of sines and powers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Stream:
    """A sequence of rich scenes; on a CPU, number n is the same scene in any process and order.

    Attributes:
        height, width: px.
        disparity: (low, high) px; range of the nearest surface of a scene, log-uniform.
        seed: identifies the sequence.
        appearance: 0 for two equal cameras, where the warped right image is the left one to half a grey level; 1 for
            cameras that differ in exposure, focus and noise, with a rectification error.
    """

    height: int
    width: int
    disparity: tuple[float, float]
    seed: int
    appearance: float = 0.0

    def scene(self, number: int) -> dict[str, np.ndarray]:
        """Scene `number`.

        Returns:
            left, right: uint8 (H, W, 3), RGB.
            disparity: float32 (H, W), px of the left image, whole thousandths, known everywhere.
            visible: bool (H, W): the right camera sees the left pixel's point.
        """
        with _one_thread():
            batch = self.batch([number], torch.device("cpu"))
        left, right = (batch[name][0].permute(1, 2, 0).to(torch.uint8).numpy() for name in ("left", "right"))
        return {
            "left": left,
            "right": right,
            "disparity": batch["disparity"][0, 0].numpy(),
            "visible": batch["visible"][0, 0].numpy(),
        }

    def batch(self, numbers: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
        """Scenes on a device; a GPU's differ from a CPU's in noise and rounding.

        Returns:
            left, right: float32 (B, 3, H, W), RGB, 0..255.
            disparity: float32 (B, 1, H, W), px; visible: bool (B, 1, H, W); as those of `scene`.
        """
        rngs = [np.random.default_rng((self.seed, number)) for number in numbers]
        layouts = [draw_layout(self.height, self.width, self._nearest(rng), rng) for rng in rngs]
        rendered = render(layouts, self.height, self.width, device)
        left, right = photograph(rendered, rngs, self.appearance)
        disparity, visible = rendered.disparity_BHW[:, None], rendered.visible_BHW[:, None]
        return {"left": left, "right": right, "disparity": disparity, "visible": visible}

    def _nearest(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(*np.log(self.disparity))))

    def batches(self, size: int, device: torch.device, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches from number `start` on; a GPU draws them while the caller's work is running.

        To continue a sequence, start at `start` plus the number of scenes drawn so far.
        """
        side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call] # torch
        while True:
            numbers, start = range(start, start + size), start + size
            yield self._beside(numbers, device, side) if side else self.batch(numbers, device)

    def _beside(self, numbers: Sequence[int], device: torch.device, side: torch.cuda.Stream) -> dict[str, torch.Tensor]:
        """A batch from another CUDA stream; the current stream waits for it, not the caller."""
        with torch.cuda.stream(side):
            batch = self.batch(numbers, device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in batch.values():
            tensor.record_stream(current)
        return batch
