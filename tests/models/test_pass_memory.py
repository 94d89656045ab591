"""The foretold memory of a pass against passes that are really made."""

from __future__ import annotations

import pytest
import torch

from stereo_core.models import create_model
from stereo_core.models.memory import LiveBytes, pass_bytes


@pytest.mark.parametrize(("size", "batch", "iters"), [((64, 96), 1, 1), ((100, 150), 2, 4)])
def test_a_pass_holds_what_was_foretold_however_many_iterations(size, batch, iters):
    """Measured on real tensors; on the CPU the same operations run, so the bytes are the same to the last."""
    network = create_model(preset="tiny").eval()
    with torch.inference_mode(), LiveBytes() as live:
        for tensor in (*network.parameters(), *network.buffers()):
            live.ignore(tensor)
        network(*(torch.rand(batch, 3, *size) for _ in range(2)), iters=iters)
    with torch.inference_mode():
        assert pass_bytes(network, size, batch) == live.peak > 100 * batch * size[0] * size[1]
    assert type(next(network.parameters())) is torch.nn.Parameter


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [False, True])
def test_what_is_foretold_for_a_gpu_is_what_its_allocator_counts(mixed):
    network = create_model(encoder="vits", mixed_precision=mixed).eval().cuda()
    images = torch.rand(2, 1, 3, 480, 640, device="cuda") * 255
    with torch.inference_mode():
        foretold = pass_bytes(network, (480, 640), 1)
        network(*images)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(*images)
        measured = torch.cuda.max_memory_allocated() - before
    print(f"mixed {mixed}: {foretold / 2**30:.2f} GiB foretold, {measured / 2**30:.2f} measured")
    assert foretold == pytest.approx(measured, rel=0.15)
