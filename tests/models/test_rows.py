import pytest
import torch
from torch.utils.checkpoint import checkpoint

from stereo_core.models.foundation_stereo.rows import Rows, read_around

RADIUS = 2


def _case(device: str = "cpu", dtype: torch.dtype = torch.float64):
    """Two tables, and positions for three reads that lie inside, across both ends and far outside."""
    torch.manual_seed(0)
    tables = [torch.randn(7, L, C, dtype=dtype, device=device).requires_grad_() for L, C in ((9, 3), (5, 1))]
    centres = [[torch.rand(7, dtype=dtype, device=device) * 30 - 10 for _ in tables] for _ in range(3)]
    return tables, centres


def _by_autograd(tables, centres):
    return torch.cat([read_around(table, centre, RADIUS) for table, centre in zip(tables, centres, strict=True)], dim=1)


def test_all_reads_share_one_gradient_which_is_autograds():
    tables, centres = _case()
    weights = [torch.randn(7, 4 * 5, dtype=torch.float64) for _ in centres]
    rows = Rows(tables, RADIUS)
    found = [rows.read(places, torch.float64) for places in centres]
    expected = [_by_autograd(tables, places) for places in centres]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def gradients(values):
        return torch.autograd.grad(sum((v * w).sum() for v, w in zip(values, weights, strict=True)), tables)

    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-14) and theirs.abs().max() > 0


def test_a_second_pass_begins_with_an_empty_gradient():
    tables, centres = _case()
    rows = Rows(tables, RADIUS)
    found = rows.read(centres[0], torch.float64).sum()
    first = torch.autograd.grad(found, tables, retain_graph=True)
    second = torch.autograd.grad(found, tables)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_recomputed_reads_give_the_same_gradient():
    tables, centres = _case()

    def gradients(run):
        rows = Rows(tables, RADIUS)
        return torch.autograd.grad(sum(run(rows.read, places, torch.float64).sum() for places in centres), tables)

    recomputed = gradients(lambda *call: checkpoint(*call, use_reentrant=False))
    kept = gradients(lambda read, *inputs: read(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(recomputed, kept, strict=True))


def test_without_a_gradient_nothing_is_kept():
    tables, centres = _case()
    with torch.no_grad():
        found = Rows(tables, RADIUS).read(centres[0], torch.float32)
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 0.05)])
def test_the_kernels_are_their_plain_twins(dtype, limit):
    tables, centres = _case("cuda", torch.float32)
    weights = torch.randn(7, 4 * 5, device="cuda")
    values = Rows(tables, RADIUS).read(centres[0], dtype).float()
    expected = _by_autograd(tables, centres[0])
    assert (values - expected).abs().max() <= limit
    for ours, theirs in zip(
        torch.autograd.grad((values * weights).sum(), tables),
        torch.autograd.grad((expected * weights).sum(), tables),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= limit
