"""What a caller may rely on, whatever the weights: sizes, batches, modes, types, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stereo_core.models import create_model
from stereo_core.models.foundation_stereo import aggregation
from stereo_core.models.foundation_stereo.cost_volume import concatenation, expected_disparity, group_correlation
from stereo_core.models.foundation_stereo.dpt import vit_input_size
from stereo_core.models.foundation_stereo.model import normalise, padding_to_multiple
from stereo_core.models.foundation_stereo.refinement import convex_upsample
from stereo_core.models.foundation_stereo.rows import read_around


def predict(model, left, right, iters=2):
    with torch.no_grad():
        return model(left, right, iters)


@pytest.mark.parametrize("size", [(64, 64), (70, 75), (65, 96), (33, 127)])
def test_any_size_in_eval(tiny, images, size):
    disparity = predict(tiny, *images(*size))
    assert disparity.shape == (1, 1, *size) and disparity.dtype == torch.float32


def test_padding_repeats_the_edge_and_is_cut_back(tiny, images):
    """The smaller half goes left and top; the caller who pads by hand gets the same picture."""
    left, right = images(70, 75)
    padding = padding_to_multiple(70, 75)
    assert padding == (10, 11, 13, 13)
    padded = [F.pad(image, padding, mode="replicate") for image in (left, right)]
    by_hand = predict(tiny, *padded)[..., 13:83, 10:85]
    assert torch.equal(predict(tiny, left, right), by_hand)


def test_an_image_does_not_see_its_batch(tiny, images):
    left, right = images(64, 96, batch=3)
    together = predict(tiny, left, right)
    for i in range(3):
        alone = predict(tiny, left[i : i + 1], right[i : i + 1])
        assert (together[i : i + 1] - alone).abs().max() < 2e-3


def test_train_mode_gives_start_and_every_iteration(tiny, images):
    tiny.train()
    init, disparities = tiny(*images(64, 96, batch=2))
    assert init.shape == (2, 1, 16, 24)
    assert [d.shape for d in disparities] == [(2, 1, 64, 96)] * tiny.config.train_iters


@pytest.mark.parametrize("size", [(64, 100), (70, 96)])
def test_train_mode_refuses_other_sizes(tiny, images, size):
    with pytest.raises(ValueError, match=f"{size[1]} x {size[0]} px.*multiples of 32"):
        tiny.train()(*images(*size))


def test_frozen_branch_stays_frozen(tiny, images):
    tiny.train()
    dino = tiny.feature.dino
    assert not any(module.training for module in dino.modules())
    init, disparities = tiny(*images(64, 64), 1)
    (init.mean() + disparities[0].mean()).backward()
    assert all(p.grad is None and not p.requires_grad for p in dino.parameters())
    unused = ("context_zqr_convs.", "stem_4.", "cnet.down.", "cnet.norm.", "feature.dino.")
    without = [n for n, p in tiny.named_parameters() if p.grad is None and not n.startswith(unused)]
    assert without == []


def test_preset_small_trains_every_weight_that_is_used(images):
    model = create_model(preset="small").train()
    init, disparities = model(*images(64, 64), 1)
    (init.mean() + disparities[0].mean()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert "feature.dino.depth_anything.pretrained.pos_embed" in trained
    assert [name for name, p in trained.items() if p.grad is None and "cnet." not in name] == []


def test_hierarchical_is_two_passes(tiny, images):
    """Half-size pass, enlarged and doubled, is the start of the full-size pass; here spelt out step by step."""
    left, right = images(70, 75)
    with torch.no_grad():
        found = tiny.hierarchical(left, right, 2)
        small = [F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False) for x in (left, right)]
        assert small[0].shape[-2:] == (35, 37)
        coarse = tiny(*small, 2)
        full = (F.interpolate(coarse, size=(70, 75), mode="bilinear", align_corners=True) * 2).clamp(min=0)
        padding = padding_to_multiple(70, 75)
        padded = F.pad(full, padding, mode="replicate") + padding[0]
        start = F.interpolate(padded, size=(24, 24), mode="bilinear", align_corners=True) * 0.25
        inputs = [normalise(F.pad(x, padding, mode="replicate")) for x in (left, right)]
        _, disparities = tiny.predict(*inputs, 2, start)
    assert found.shape == (1, 1, 70, 75)
    assert torch.allclose(found, disparities[-1][..., 13:83, 10:85], atol=1e-5)
    assert (found - predict(tiny, left, right)).abs().max() > 0.01


def test_iterations_default_to_the_configuration(images):
    torch.manual_seed(0)
    model = create_model(preset="tiny", valid_iters=3).eval()
    left, right = images(64, 64)
    with torch.no_grad():
        assert torch.equal(model(left, right), model(left, right, 3))
        assert not torch.equal(model(left, right), model(left, right, 2))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_gru_layer_count_updates_its_states(images, levels):
    """With one layer TAO never updates the hidden state: its disparity step would not change with the iterations."""
    torch.manual_seed(0)
    model = create_model(preset="tiny", n_gru_layers=levels).eval()
    seen = []
    model.update_block.register_forward_hook(lambda module, args, out: seen.append((args[0], out[0])))
    predict(model, *images(64, 64))
    assert len(seen[0][0]) == levels
    for before, after in seen:
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("variant", ["nvlabs", "tao"])
def test_three_attentions_are_three_networks(images, variant):
    found = []
    for attention in ("disparity", "heads", "tao"):
        torch.manual_seed(0)
        # At max_disparity 64 there are 4 tokens and 4 heads, and "heads" and "tao" are then the same.
        model = create_model(preset="tiny", max_disparity=96, variant=variant, disparity_attention=attention).eval()
        found.append(predict(model, *images(64, 64)))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (found[i] - found[j]).abs().max() > 1e-4


def test_attention_forms_by_their_definition():
    """ "disparity" mixes tokens with a softmax over tokens; "heads" leaves each token to itself."""
    torch.manual_seed(0)
    layer = aggregation.DisparityAttention(8, 4, "disparity")
    x = torch.randn(2, 3, 5, 8)
    q, k, v = (proj(x).reshape(2, 3, 5, 4, 2) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    weight = (torch.einsum("mwqhc,mwkhc->mwhqk", q, k) / 2**0.5).softmax(-1)
    wanted = layer.out_proj(torch.einsum("mwhqk,mwkhc->mwqhc", weight, v).reshape(2, 3, 5, 8))
    assert torch.allclose(layer(x), wanted, atol=1e-6)
    layer.form = "heads"
    changed = x.clone()
    changed[:, :, 2] += 1
    moved = (layer(changed) - layer(x)).abs().amax((0, 1, 3)) > 1e-6
    assert moved.tolist() == [False, False, True, False, False]


def test_correlation_volume_by_its_definition():
    """<left(x), right(x - d)> of unit group vectors, 0 where x < d; d may exceed the width."""
    torch.manual_seed(0)
    left, right = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5)
    volume = group_correlation(left, right, bins=8, groups=3)
    assert volume.shape == (2, 3, 8, 3, 5)
    for d in range(8):
        for x in range(5):
            wanted = torch.zeros(2, 3, 3)
            if x >= d:
                a, b = (t[..., i].reshape(2, 3, 2, 3) for t, i in ((left, x), (right, x - d)))
                wanted = F.cosine_similarity(a, b, dim=2)
            assert torch.allclose(volume[:, :, d, :, x], wanted, atol=1e-5), (d, x)


def test_concatenation_volume_by_its_definition():
    torch.manual_seed(0)
    left, right = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    volume = concatenation(left, right, bins=7)
    for d in range(7):
        moved = torch.zeros_like(right)
        moved[..., d:] = right[..., : max(0, 5 - d)]
        assert torch.equal(volume[:, :, d], torch.cat([left, moved], 1)), d


def test_lookup_is_linear_and_zero_outside():
    rows = torch.tensor([[10.0, 20.0, 40.0]])[..., None]
    assert read_around(rows, torch.tensor([1.0]), 2).tolist() == [[0.0, 10.0, 20.0, 40.0, 0.0]]
    assert read_around(rows, torch.tensor([1.25]), 1).tolist() == [[12.5, 25.0, 30.0]]
    assert read_around(rows, torch.tensor([-0.5]), 1).tolist() == [[0.0, 5.0, 15.0]]
    for far in (-1e6, 1e6, float("inf")):
        assert read_around(rows, torch.tensor([far]), 1).nan_to_num(0).abs().max() == 0


def test_expected_disparity_of_a_peak():
    logits = torch.full((1, 1, 6, 2, 2), -50.0)
    logits[:, :, 4] = 50.0
    assert torch.allclose(expected_disparity(logits), torch.full((1, 1, 2, 2), 4.0))


def test_upsampling_takes_neighbours_row_by_row():
    """Weight 1 on neighbour 5 (row-major 3 x 3) is the pixel to the right, in full-resolution px."""
    disparity = torch.arange(6.0).reshape(1, 1, 2, 3)
    logits = torch.full((1, 9, 8, 12), -100.0)
    logits[:, 5] = 100.0
    wanted = torch.tensor([[4.0, 8.0, 0.0], [16.0, 20.0, 0.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(convex_upsample(disparity, logits)[0, 0], wanted)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((128, 160), (224, 224)),
        ((192, 320), (224, 336)),
        ((320, 736), (336, 784)),
        ((480, 640), (560, 672)),
        ((576, 960), (672, 1008)),
        ((1984, 2880), (1008, 1344)),
    ],
)
def test_size_that_the_vit_sees(size, seen):
    assert vit_input_size(*size) == seen


def test_size_that_the_vit_sees_is_the_rule_for_every_size():
    """The rule in its plain form, and as a trace computes it: on tensors."""

    def rule(height, width):
        h, w = (112 * math.ceil(side / 112) for side in (height, width))
        shrink = 1344 / max(h, w, 1344)
        return 112 * math.ceil(round(h * shrink / 112, 9)), 112 * math.ceil(round(w * shrink / 112, 9))

    sides = [1, *range(32, 3008, 32), 3000]
    expected = {(height, width): rule(height, width) for height in sides for width in sides}
    assert {size: vit_input_size(*size) for size in expected} == expected
    heights, widths = torch.tensor(sides)[:, None], torch.tensor(sides)[None]
    h, w = vit_input_size(heights, widths)
    assert list(zip(h.flatten().tolist(), w.flatten().tolist(), strict=True)) == list(expected.values())


def test_float64_is_float64_throughout(tiny, images):
    """A hard cast to float32 on the way would show as a difference of 1e-7, not 1e-15."""
    model = tiny.double()
    left, right = (x.double() for x in images(64, 64))
    found = predict(model, left, right)
    assert found.dtype == torch.float64
    nudged = predict(model, left * (1 + 1e-13), right)
    assert 0 < (nudged - found).abs().max() < 1e-9


def test_weights_in_bfloat16_give_a_float32_disparity(tiny, images):
    left, right = images(64, 64)
    full = predict(tiny, left, right)
    half = predict(tiny.bfloat16(), left.bfloat16(), right.bfloat16())
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 1.5


@pytest.mark.parametrize("iters", [0, -1])
def test_no_iterations_are_refused(tiny, images, iters):
    with pytest.raises(ValueError, match="must be at least 1"):
        predict(tiny, *images(64, 64), iters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_disparity_in_float32(tiny, images, dtype):
    left, right = images(64, 64)
    full = predict(tiny, left, right)
    with torch.autocast("cpu", dtype):
        half = predict(tiny, left, right)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 1.0
    assert half.to(dtype).float().ne(half).any()  # not merely rounded values in a wider type


def test_autocast_leaves_cosines_in_float32():
    torch.manual_seed(0)
    left, right = torch.randn(1, 16, 4, 6).bfloat16(), torch.randn(1, 16, 4, 6).bfloat16()
    wanted = group_correlation(left.float(), right.float(), 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = group_correlation(left, right, 4, 8)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_state_dict_holds_no_tables(tiny):
    words = ("mean", "std", "table", "offset", "dx", "positions")
    keys = [key for key in tiny.state_dict() if not key.endswith(("running_mean", "running_var"))]
    assert not [key for key in keys if key.rsplit(".", 1)[-1] in words]
    assert not [name for name, b in tiny.named_buffers() if not name.endswith(("_mean", "_var", "_tracked"))]
