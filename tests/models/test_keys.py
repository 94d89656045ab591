"""The state dict is the published one: names, shapes, parameter counts."""

from __future__ import annotations

import json

import pytest
import torch

from stereo_core.errors import ModelError
from stereo_core.models import create_model
from stereo_core.models.checkpoints import from_tao, to_tao


def on_meta(**settings):
    with torch.device("meta"):
        return create_model(**settings)


def listed(shared, name: str) -> tuple[dict, dict]:
    table = json.loads((shared / "model" / f"state_dict_{name}.json").read_text())
    return {key: tuple(shape) for key, shape, _ in table["state_dict"]}, table


def shapes(model) -> dict:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["vits", "vitb", "vitl"])
def test_nvlabs_names_and_shapes(shared, encoder):
    wanted, table = listed(shared, encoder)
    model = on_meta(encoder=encoder)
    assert shapes(model) == wanted
    assert sum(p.numel() for p in model.parameters()) == table["params_total"]
    # The reference counts weights that nothing uses as trained; here they are frozen, like the ViT.
    trained = {name: p for name, p in model.named_parameters() if ".depth_anything." not in name}
    assert sum(p.numel() for p in trained.values()) == table["params_trainable"]


def test_two_names_of_one_norm(shared):
    _, table = listed(shared, "vits")
    model = create_model(preset="tiny")
    state = model.state_dict()
    for name, other in table["aliased_keys"].items():
        assert state[name].data_ptr() == state[other].data_ptr(), name


@pytest.mark.parametrize("encoder", ["vits", "vitl"])
def test_tao_names_and_shapes(shared, encoder):
    wanted, table = listed(shared, f"tao_{encoder}")
    model = on_meta(encoder=encoder, variant="tao")
    assert {to_tao(key): shape for key, shape in shapes(model).items()} == wanted
    assert sum(p.numel() for p in model.parameters()) == table["params_total"]
    assert all(to_tao(from_tao(key)) == key for key in wanted)


def test_the_same_tao_weight_is_two_tensors_in_no_variant(shared):
    """agg_1.0 is the one weight whose shape differs between the variants (a transposed convolution in TAO)."""
    nvlabs, tao = shapes(on_meta(encoder="vits")), shapes(on_meta(encoder="vits", variant="tao"))
    assert [key for key in tao if tao[key] != nvlabs[key]] == ["cost_agg.agg_1.0.conv.weight"]
    lost = {key.rsplit(".", 2)[0] for key in nvlabs.keys() - tao.keys()}
    assert {"cnet.conv2", "corr_stem.1", "classifier.0", "corr_feature_att.feat_att.0"} < lost
    assert len(nvlabs.keys() - tao.keys()) == 45


def test_fill_checksums(shared, weights):
    wanted = json.loads((shared / "model" / "fill_checksums_vits.json").read_text())["tensors"]
    for key, (total, absolute, first) in wanted.items():
        value = weights[key].double().flatten()
        found = [value.sum().item(), value.abs().sum().item(), value[0].item()]
        assert found == pytest.approx([total, absolute, first], rel=1e-9, abs=1e-9), key


def test_giant_vit_is_gated():
    """DINOv2 giant: 40 blocks 1536 wide, SwiGLU of hidden width 4096 (w12 holds both halves)."""
    state = shapes(on_meta(encoder="vitg"))
    block = "feature.dino.depth_anything.pretrained.blocks.39."
    assert state[block + "mlp.w12.weight"] == (8192, 1536)
    assert state[block + "mlp.w3.weight"] == (1536, 4096)
    assert block.replace("39", "40") + "norm1.weight" not in state
    assert state["feature.dino.depth_anything.depth_head.projects.0.weight"] == (1536, 1536, 1, 1)
    assert state["feature.dino.depth_anything.depth_head.scratch.layer4_rn.weight"] == (384, 1536, 3, 3)
    assert state["feature.conv4.0.conv.weight"] == (96 + 192, 96 + 192, 3, 3)
    model = on_meta(encoder="vitg", max_disparity=64)
    assert model.feature.dino.depth_anything.pretrained.taken == (9, 19, 29, 39)
    with torch.device("meta"):
        assert model.eval()(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), 1).shape == (1, 1, 64, 64)


def test_tiny_preset_is_as_documented():
    model = on_meta(preset="tiny")
    state, config = shapes(model), model.config
    vit = "feature.dino.depth_anything.pretrained."
    assert (config.encoder, config.max_disparity, config.train_iters, config.valid_iters) == ("vitt", 64, 4, 8)
    assert state[vit + "pos_embed"] == (1, 37 * 37 + 1, 64)
    assert vit + "blocks.3.norm1.weight" in state and vit + "blocks.4.norm1.weight" not in state
    assert state["feature.dino.depth_anything.depth_head.scratch.layer1_rn.weight"][0] == 16
    widths = [state[f"feature.stages.{i}.blocks.0.gamma"][0] for i in range(4)]
    assert widths == [24, 48, 88, 168]
    assert state["feature.stages.1.blocks.1.xca.temperature"] == (4, 1, 1)
    assert state["update_block.gru04.small_gru.convz.weight"][0] == 32
    assert state["corr_stem.0.weight"][0] == 8


def test_settings_change_only_what_they_should():
    base = shapes(on_meta(preset="tiny"))
    assert shapes(on_meta(preset="tiny", max_disparity=128, disparity_attention="heads", low_memory=1)) == base
    wide = shapes(on_meta(preset="tiny", corr_radius=3, corr_levels=1))
    assert {k for k in base if base[k] != wide[k]} == {"update_block.encoder.convc1.weight"}
    assert wide["update_block.encoder.convc1.weight"][1] == 7 * (8 + 1)


@pytest.mark.parametrize("variant", ["nvlabs", "tao"])
def test_attention_follows_the_variant_unless_said(variant):
    usual = {"nvlabs": "disparity", "tao": "tao"}[variant]
    assert on_meta(preset="tiny", variant=variant).config.disparity_attention == usual
    assert on_meta(preset="tiny", variant=variant, disparity_attention="heads").config.disparity_attention == "heads"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_disparity": 100}, "max_disparity 100 .* use 96 or 128"),
        ({"encoder": "vitx"}, "encoder 'vitx' is unknown"),
        ({"preset": "tiny", "encoder": "vits"}, "whose encoder is 'vitt'"),
        ({"variant": "onnx"}, "variant 'onnx' is unknown"),
        ({"n_gru_layers": 4}, "n_gru_layers is 4; it must be 1 to 3"),
        ({"hidden": 3}, "unknown model setting 'hidden'"),
    ],
)
def test_bad_settings_name_the_key_and_the_mend(settings, message):
    with pytest.raises(ModelError, match=message):
        on_meta(**settings)


def test_spec_and_model_agree_on_the_presets():
    from stereo_core.models.foundation_stereo.config import PRESET_SETTINGS
    from stereo_core.spec.model import PRESETS

    flat = {name: dict(values) for name, values in PRESETS.items()}
    for values in flat.values():
        values |= values.pop("stereo_backbone", {})
    assert {name: values for name, values in PRESET_SETTINGS.items() if name} == flat
