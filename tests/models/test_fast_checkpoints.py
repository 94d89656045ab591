"""FastFoundationStereo's files: both layouts load alike, the shapes decide, and what does not fit is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from stereo_core.errors import ModelError
from stereo_core.models import create_model, from_spec, load_model, save_checkpoint
from stereo_core.models.checkpoints import convert_checkpoint, describe
from stereo_core.models.names import from_tao, to_tao
from stereo_core.spec import spec_from_dict

FAST = {"model": {"model_type": "FastFoundationStereo"}}


@pytest.fixture(scope="module")
def bp2():
    torch.manual_seed(2)
    return create_model("FastFoundationStereo").eval()


@pytest.fixture
def plain(tmp_path, bp2):
    """The published file's content: research names, no offsets, nothing beside the weights."""
    path = tmp_path / "plain.pth"
    torch.save({key: t for key, t in bp2.state_dict().items() if key != "dx"}, path)
    return path


def same(model, other) -> bool:
    found, wanted = model.state_dict(), other.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_names_are_tao_s(shared):
    facts = json.loads((shared / "model" / "state_dict_ffs_bp2_serialize.json").read_text())
    names = {key: facts["rename_to_tao"].get(key, key) for key, _, _ in facts["state_dict"]}
    assert {key: to_tao(key) for key in names} == names
    assert {from_tao(name): name for name in names.values()} == names
    tao = json.loads((shared / "model" / "state_dict_ffs_bp2.json").read_text())["state_dict"]
    assert {name for name, _, _ in tao} == set(names.values())


def test_both_layouts_load_alike(tmp_path, bp2, plain, images):
    save_checkpoint(bp2, tmp_path / "ours.pth", "nvlabs")
    convert_checkpoint(plain, tmp_path / "tao.pth", "tao")
    tao = torch.load(tmp_path / "tao.pth", weights_only=True)["state_dict"]
    assert "model.corr_feature_att.0.conv.weight" in tao and "model.classifier.0.bias" in tao
    assert all(same(load_model(path), bp2) for path in (plain, tmp_path / "ours.pth", tmp_path / "tao.pth"))
    left, right = images(64, 96)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "tao.pth").eval()(left, right, 1), bp2(left, right, 1))
    found = describe(tmp_path / "tao.pth")
    assert (found["network"], found["names"], found["topology"]) == ("FastFoundationStereo", "tao", "bp2")
    assert found["widths"]["gru_gating_conv_widths"] == (100, 168)


def test_other_widths_and_the_unpruned_network_come_from_the_shapes(tmp_path):
    widths = {"gru_hidden": 24, "cnet_conv04_widths": [24, 20], "gru_gating_conv_widths": [30, 50]}
    narrow = create_model("FastFoundationStereo", widths=widths, encoder="vits", corr_radius=3, hidden_dims=[16, 8])
    unpruned = create_model("FastFoundationStereo", topology="unpruned", gwc_feature_normalize=False)
    for name, model in (("narrow", narrow), ("unpruned", unpruned)):
        save_checkpoint(model, tmp_path / f"{name}.pth")
        loaded = load_model(tmp_path / f"{name}.pth")
        assert loaded.config == model.config
        assert same(loaded, model)
    with pytest.raises(ModelError, match="TAO does not support the un-pruned FastFoundationStereo; use layout nvlabs"):
        convert_checkpoint(tmp_path / "unpruned.pth", tmp_path / "tao.pth", "tao")


def test_a_spec_that_contradicts_the_widths_is_refused(plain):
    agreeing = {"gru_hidden": 60, "mask_widths": [32, 16], "hidden_dims": [128], "n_gru_layers": 1}
    model = from_spec(spec_from_dict("export", export(plain) | {"model": FAST["model"] | agreeing}), plain)
    assert model.config.widths.gru_hidden == 60
    for key, value, held in (("gru_hidden", 128, 60), ("mask_widths", [64, 32], [32, 16])):
        spec = spec_from_dict("export", export(plain) | {"model": FAST["model"] | {key: value}})
        with pytest.raises(ModelError) as error:
            from_spec(spec, plain)
        assert f"has {key} {held}, not {value}; remove model.{key} from the spec: the checkpoint decides" in str(
            error.value
        )
    with pytest.raises(ModelError, match="has encoder vitl, not vits"):
        load_model(plain, encoder="vits")


def export(path) -> dict:
    return {"export": {"checkpoint": str(path), "onnx_file": "out.onnx"}}


def test_max_disparity_that_does_not_fit(tmp_path, plain, bp2, caplog):
    caplog.set_level(logging.INFO)
    assert load_model(plain).config.max_disparity == 192
    assert f"{plain}: the network's max_disparity is 192 px, the published value" in caplog.messages
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert describe(plain)["max_disparity"] == 192 and describe(plain)["max_disparity_from"] == "the published value"
    with pytest.raises(ModelError, match=r"not trained for a max_disparity of 416 px.* set\s+model.max_disparity=192"):
        load_model(plain, max_disparity=416)
    caplog.clear()
    assert load_model(plain, max_disparity=256).config.max_disparity == 256
    assert "256 px, from model.max_disparity, but the weights were trained for 192 px, so" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"
    save_checkpoint(create_model("FastFoundationStereo", max_disparity=128), tmp_path / "own.pth")
    with pytest.raises(ModelError, match=r"416 px.* set\s+model.max_disparity=128"):
        load_model(tmp_path / "own.pth", max_disparity=416)
    spec = spec_from_dict("export", export(plain))
    assert from_spec(spec, plain).config.max_disparity == 192
    wide = create_model("FastFoundationStereo", max_disparity=416)
    save_checkpoint(wide, tmp_path / "wide.pth")
    assert load_model(tmp_path / "wide.pth").config.max_disparity == 416
    assert load_model(tmp_path / "wide.pth", max_disparity=192).config.max_disparity == 192
    assert "192 px, from model.max_disparity, but the weights were trained for 416 px, so" in caplog.text
    assert caplog.records[-1].levelname == "WARNING"


def test_another_normalisation_than_the_trained_one_is_told(tmp_path, caplog):
    """No shape depends on it: the network would run, with other disparities."""
    save_checkpoint(create_model("FastFoundationStereo", gwc_feature_normalize=False), tmp_path / "dot.pth")
    for asked, warns in ((False, False), (True, True)):
        caplog.clear()
        assert load_model(tmp_path / "dot.pth", gwc_feature_normalize=asked).config.gwc_feature_normalize == asked
        assert ("is true, but the weights were trained with false" in caplog.text) == warns


def test_keys_of_the_network_that_the_file_does_not_hold(tmp_path, plain, caplog):
    with pytest.raises(ModelError, match=r"FastFoundationStereo, which has no preset; remove model\.preset"):
        load_model(plain, preset="tiny")
    save_checkpoint(create_model(preset="tiny"), tmp_path / "tiny.pth")
    spec = export(tmp_path / "tiny.pth") | {"model": {"gru_hidden": 60, "gwc_feature_normalize": True}}
    from_spec(spec_from_dict("export", spec), tmp_path / "tiny.pth")
    for key in ("gru_hidden", "gwc_feature_normalize"):
        assert f"model.{key} has no effect: it is for FastFoundationStereo, but" in caplog.text


def test_the_file_and_model_type_must_agree(tmp_path, plain):
    save_checkpoint(create_model(preset="tiny"), tmp_path / "tiny.pth")
    with pytest.raises(
        ModelError, match="holds a network with model_type FoundationStereo, not FastFoundationStereo; remove"
    ):
        from_spec(spec_from_dict("export", export(tmp_path / "tiny.pth") | FAST), tmp_path / "tiny.pth")
    spec = spec_from_dict("export", export(plain) | {"model": {"model_type": "foundationstereo"}})
    with pytest.raises(ModelError, match=r"remove model\.model_type from the spec: the checkpoint"):
        from_spec(spec, plain)


def test_a_searched_structure_that_is_not_known(tmp_path, bp2):
    state = {key: t for key, t in bp2.state_dict().items() if ".post32_to_16." not in key}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="an unknown pruned structure; supported are bp2"):
        load_model(tmp_path / "other.pth")
    state = {key: t for key, t in bp2.state_dict().items() if key != "update_block.mask.0.weight"}
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(ModelError, match=r"weight update_block\.mask\.0\.weight is missing; .* or of another network"):
        load_model(tmp_path / "short.pth")


def test_from_scratch_takes_tao_s_widths_and_needs_no_vit(caplog):
    caplog.set_level(logging.INFO)
    source = {"dataset_name": "Synthetic"}
    dataset = {f"{split}_dataset": {"data_sources": [source]} for split in ("train", "val")}
    model = from_spec(spec_from_dict("train", FAST | {"dataset": dataset, "results_dir": "out"}))
    assert model.config.widths.spx_2_gru_widths == (32, 32, 32, 32)
    assert (model.config.max_disparity, model.config.valid_iters, model.config.hidden_dims) == (192, 8, (128,) * 3)
    assert "model.max_disparity: using 192 px" in caplog.text
