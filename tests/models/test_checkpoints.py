"""Checkpoints of every layout load into the same weights; what can not be loaded says why and what to do."""

from __future__ import annotations

import json
import resource
import shutil
import zipfile
from dataclasses import asdict

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stereo_core.errors import ModelError, SpecError
from stereo_core.models import create_model, from_spec, load_model, save_checkpoint
from stereo_core.models.backbones import load_edgenext
from stereo_core.models.checkpoints import convert_checkpoint, describe, to_tao
from stereo_core.spec import spec_from_dict


@pytest.fixture(scope="module")
def tiny_state() -> dict:
    torch.manual_seed(1)
    return create_model(preset="tiny").state_dict()


def same(model: nn.Module, state: dict) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


ENVELOPES = {
    "plain": lambda s: s,
    "nvlabs": lambda s: {"model": s, "epoch": 3, "global_step": 70, "best": 0.25},
    "data_parallel": lambda s: {"model": prefixed(s, "module.")},
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "epoch": 3, "global_step": 70, "loops": {}},
    "lightning_with_more": lambda s: {"state_dict": prefixed(s, "model.") | {"loss.weight": torch.zeros(1)}},
    "compiled": lambda s: {"state_dict": prefixed(s, "model._orig_mod.")},
    "tao": lambda s: {"state_dict": prefixed({to_tao(k): v for k, v in s.items()}, "model.")},
}


@pytest.mark.parametrize("layout", ENVELOPES)
def test_layouts_load_alike(tmp_path, tiny_state, layout):
    path = tmp_path / "weights.pth"
    torch.save(ENVELOPES[layout](tiny_state), path)
    model = load_model(path)
    assert same(model, tiny_state)
    assert (model.config.preset, model.config.encoder, model.config.variant) == ("tiny", "vitt", "nvlabs")
    assert not any(p.requires_grad for p in model.feature.dino.parameters())
    assert model.proj_cmb.weight.requires_grad


def test_of_two_presets_of_the_same_shapes_the_file_says_which(tmp_path, tiny_state, caplog):
    path = tmp_path / "bare.pth"
    torch.save(tiny_state, path)
    with caplog.at_level("INFO"):
        assert load_model(path).config.preset == "tiny"
    assert "presets tiny and small; using tiny" in caplog.text
    config = load_model(path, preset="small").config
    assert (config.max_disparity, config.train_vit) == (192, True)

    save_checkpoint(create_model(preset="small"), path)
    model = load_model(path)
    assert (model.config.preset, model.config.max_disparity, model.config.train_vit) == ("small", 192, True)
    assert model.feature.dino.depth_anything.pretrained.pos_embed.requires_grad
    assert not load_model(path, train_vit=False).feature.dino.depth_anything.pretrained.pos_embed.requires_grad
    with pytest.raises(ModelError, match=r"preset small, not tiny; remove model\.preset from the spec"):
        load_model(path, preset="tiny")


@pytest.mark.parametrize(
    ("stored", "given", "found", "level", "why"),
    [
        (None, None, 64, "WARNING", "the tiny preset's value: the file does not store"),
        (None, 192, 192, "INFO", "from model.max_disparity"),
        (96, None, 96, "INFO", "stored with the weights"),
        (96, 192, 192, "WARNING", "from model.max_disparity, but the weights were trained for 96 px, so"),
        (192, 192, 192, "INFO", "from model.max_disparity"),
    ],
)
def test_loading_says_which_max_disparity_it_takes_and_why(
    tmp_path, tiny_state, caplog, stored, given, found, level, why
):
    """No weight tells it, and a wrong one runs."""
    path = tmp_path / "weights.pth"
    content = {"model": tiny_state}
    if stored:
        content["hyper_parameters"] = {"model": {"max_disparity": stored}}
    torch.save(content, path)
    with caplog.at_level("INFO"):
        assert load_model(path, max_disparity=given).config.max_disparity == found
    said = [record for record in caplog.records if "max_disparity" in record.getMessage()]
    assert [record.levelname for record in said] == [level]
    assert f"{path}: the network's max_disparity is {found} px, {why}" in said[0].getMessage()
    if given is None:
        told = describe(path)
        assert told["max_disparity"] == found and told["max_disparity_from"].startswith(why)


def test_safetensors_which_keeps_one_of_two_names(tmp_path, tiny_state):
    state = {k: v.clone() for k, v in tiny_state.items() if ".downsample.1." not in k or "cnet" not in k}
    assert len(state) < len(tiny_state)
    save_file(state, tmp_path / "weights.safetensors")
    assert same(load_model(tmp_path / "weights.safetensors"), tiny_state)


def test_half_precision_file_loads_as_float32(tmp_path, tiny_state):
    half = {k: v.half() if v.is_floating_point() else v for k, v in tiny_state.items()}
    torch.save(half, tmp_path / "half.pth")
    model = load_model(tmp_path / "half.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.proj_cmb.weight, half["proj_cmb.weight"].float())


def test_loaded_model_computes_what_was_saved(tmp_path, tiny, images):
    save_checkpoint(tiny, tmp_path / "m.pth")
    left, right = images(64, 64)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m.pth").eval()(left, right, 1), tiny(left, right, 1))


@pytest.mark.parametrize("variant", ["nvlabs", "tao"])
@pytest.mark.parametrize("layout", ["nvlabs", "tao"])
def test_settings_travel_with_the_weights(tmp_path, variant, layout):
    """Keys can not tell max_disparity, attention and iterations."""
    settings = {"max_disparity": 96, "disparity_attention": "heads", "valid_iters": 5, "variant": variant}
    model = create_model(preset="tiny", corr_radius=3, n_gru_layers=2, **settings)
    save_checkpoint(model, tmp_path / "m.pth", layout)
    assert load_model(tmp_path / "m.pth").config == model.config
    assert load_model(tmp_path / "m.pth", max_disparity=64, valid_iters=None).config.max_disparity == 64
    assert load_model(tmp_path / "m.pth", disparity_attention="tao").config.disparity_attention == "tao"


def test_settings_of_the_trainers_file(tmp_path):
    """Our trainer writes asdict(config), as Lightning's hyper-parameters."""
    model = create_model(preset="tiny", valid_iters=3)
    state = prefixed(model.state_dict(), "model.")
    torch.save({"state_dict": state, "hyper_parameters": {"model": asdict(model.config)}}, tmp_path / "t.pth")
    assert load_model(tmp_path / "t.pth").config == model.config


def test_cfg_yaml_beside_the_file(tmp_path, tiny_state):
    torch.save({"model": tiny_state}, tmp_path / "model_best_bp2.pth")
    (tmp_path / "cfg.yaml").write_text("max_disp: 192\nvalid_iters: 32\nmixed_precision: true\nvit_size: vitl\n")
    config = load_model(tmp_path / "model_best_bp2.pth").config
    assert (config.max_disparity, config.valid_iters, config.disparity_attention) == (192, 32, "disparity")
    (tmp_path / "cfg.yaml").write_text("a: [")
    with pytest.raises(ModelError, match=r"cfg\.yaml"):
        load_model(tmp_path / "model_best_bp2.pth")


@pytest.mark.parametrize("variant", ["nvlabs", "tao"])
def test_conversions_round_trip_bit_for_bit(tmp_path, variant):
    torch.manual_seed(2)
    model = create_model(preset="tiny", variant=variant, max_disparity=96)
    save_checkpoint(model, tmp_path / "a.pth", "nvlabs", epoch=7, global_step=321)
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", "tao")
    convert_checkpoint(tmp_path / "b.pth", tmp_path / "c.pth", "nvlabs")
    first, last = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "c.pth"))
    assert first["model"].keys() == last["model"].keys()
    assert all(torch.equal(first["model"][key], last["model"][key]) for key in first["model"])
    assert {k: v for k, v in first.items() if k != "model"} == {k: v for k, v in last.items() if k != "model"}
    assert (last["epoch"], last["global_step"]) == (7, 321)
    names = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"].keys()
    assert "model.feature.stages.2.5.gamma_xca" in names and "model.cost_agg.conv3_up.norm.weight" in names
    assert load_model(tmp_path / "b.pth").config == model.config


def test_a_conversion_never_overwrites_its_source(tmp_path):
    """Also not through a link such as dn_model_latest.pth: the optimizer's state would be gone."""
    save_checkpoint(create_model(preset="tiny"), tmp_path / "a.pth")
    (tmp_path / "latest.pth").symlink_to("a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    for target in ("a.pth", "latest.pth"):
        with pytest.raises(ModelError, match="the target is the source"):
            convert_checkpoint(tmp_path / "a.pth", tmp_path / target, "tao")
    assert (tmp_path / "a.pth").read_bytes() == before and (tmp_path / "latest.pth").is_symlink()


def test_a_conversion_does_not_write_what_it_could_not_read_again(tmp_path):
    """PyTorch's format under the name of another; or a folder, found out after everything was read."""
    for target, told in ((tmp_path / "b.safetensors", "name it b.pth"), (tmp_path, "is a folder; name a file in it")):
        with pytest.raises(ModelError, match=told):
            convert_checkpoint("starter", target, "nvlabs")
    assert not list(tmp_path.iterdir())


def test_tao_files_own_names(shared, tmp_path):
    """A vits file under the very names of TAO's state dict: variant, encoder and attention are recognised."""
    table = json.loads((shared / "model" / "state_dict_tao_vits.json").read_text())["state_dict"]
    state = {f"model.{key}": torch.zeros(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in table}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 1}, tmp_path / "tao.pth")
    config = load_model(tmp_path / "tao.pth").config
    assert (config.encoder, config.variant, config.disparity_attention) == ("vits", "tao", "tao")
    assert (config.max_disparity, config.preset, config.corr_radius) == (416, None, 4)
    told = describe(tmp_path / "tao.pth")
    assert told["parameters"] == 62_333_607 and told["tensors"] == 1147
    assert (told["layout"], told["names"], told["disparity_attention"]) == ("lightning", "tao", "tao")


def test_describe_counts_each_weight_once(shared, tmp_path):
    table = json.loads((shared / "model" / "state_dict_vits.json").read_text())
    state = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, shape, dtype in table["state_dict"]}
    torch.save({"model": state, "global_step": 5}, tmp_path / "vits.pth")
    told = describe(tmp_path / "vits.pth")
    assert told["parameters"] == table["params_total"]
    assert (told["network"], told["encoder"], told["disparity_attention"]) == ("FoundationStereo", "vits", "disparity")
    assert told["global_step"] == 5


# What is refused


def refusal(path, **overrides) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, **overrides)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_file_for_the_edgenext_names_the_key(tmp_path, tiny_state):
    torch.save(tiny_state, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"^model\.stereo_backbone\.edgenext_pretrained_path: .*m\.pth is no EdgeNeXt"):
        load_edgenext(create_model(preset="tiny"), tmp_path / "m.pth")


def test_a_setting_that_contradicts_the_checkpoint_is_to_be_removed(tmp_path, tiny_state):
    """`set model.encoder=vitt` would lead to the preset, and the preset back to the encoder."""
    torch.save(tiny_state, tmp_path / "m.pth")
    told = refusal(tmp_path / "m.pth", encoder="vitl")
    assert told.endswith("encoder vitt, not vitl; remove model.encoder from the spec: the checkpoint decides")
    assert "variant nvlabs, not tao" in refusal(tmp_path / "m.pth", variant="tao")


def test_what_does_not_fit_is_counted_and_named(tmp_path, tiny_state):
    state = dict(tiny_state)
    del state["proj_cmb.bias"], state["spx_gru.0.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["stem_2.1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "m.pth")
    message = refusal(tmp_path / "m.pth")
    assert "2 missing (proj_cmb.bias, spx_gru.0.bias)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (stem_2.1.weight (2, 2) for (8, 8, 3, 3))" in message


class Payload:
    def __reduce__(self):
        return (shutil.rmtree, ("/nonexistent",))


@pytest.mark.parametrize("content", [nn.Linear(1, 1), Payload()])
def test_pickled_objects_are_not_run(tmp_path, content):
    torch.save({"model": content}, tmp_path / "m.pth")
    assert "run code from the file" in refusal(tmp_path / "m.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, tiny_state, suffix, share):
    path = tmp_path / f"m{suffix}"
    if suffix == ".pth":
        torch.save(tiny_state, path)
    else:
        save_file({k: v.clone() for k, v in tiny_state.items()}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated or damaged" in refusal(path)


def test_a_damaged_compressed_file_is_refused_before_it_is_inflated(tmp_path):
    """zlib has an error of its own, which ended in a traceback."""
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("c/data.pkl", bytes(range(256)))
    data, begin = bytearray(path.read_bytes()), 30 + len("c/data.pkl")
    data[begin : begin + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"c\.pth: its entry c/data\.pkl is compressed.*torch\.save"):
        describe(path)


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "empty.pth").touch()
    assert "empty" in refusal(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("left.png right.png\n")
    assert "not a checkpoint" in refusal(tmp_path / "text.pth")
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "a folder" in refusal(tmp_path)
    (tmp_path / "model.tlt").write_bytes(b"\x01\x02\x03\x04" * 9)
    assert "encrypted" in refusal(tmp_path / "model.tlt")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    assert "an ONNX file" in (told := refusal(tmp_path / "model.onnx")) and "depth_net gen_trt_engine" in told
    (tmp_path / "model.engine").write_bytes(b"ftrt" + bytes(99))
    assert "evaluate.trt_engine" in refusal(tmp_path / "model.engine")
    (tmp_path / "model.eng").write_bytes(b"\x08\x08" + bytes(99))  # an engine of ONNX Runtime is an ONNX file
    assert "this is an ONNX file" in refusal(tmp_path / "model.eng")
    (tmp_path / "model.eng.json").write_text('{"kind": "engine"}')
    assert "evaluate.trt_engine" in refusal(tmp_path / "model.eng")
    with zipfile.ZipFile(tmp_path / "compiled.pt2", "w") as package:
        package.writestr("compiled/archive_format", "pt2")
    assert "torch.save did not write it" in refusal(tmp_path / "compiled.pt2")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "contains a list" in refusal(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "bare.pth")
    assert "only the keys epoch" in refusal(tmp_path / "bare.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert "first weights are fc.weight" in refusal(tmp_path / "other.pth")
    torch.save({"state_dict": {"x": torch.zeros(1)}, "state_dict_encrypted": True}, tmp_path / "locked.pth")
    assert "weights are encrypted" in refusal(tmp_path / "locked.pth")


def test_an_unwritable_target_leaves_the_old_file(tmp_path, tiny, monkeypatch):
    save_checkpoint(tiny, tmp_path / "m.pth")
    before = (tmp_path / "m.pth").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tiny, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


# Backbones and the spec


def spec(**model) -> object:
    return spec_from_dict("train", _needed() | {"model": model})


def _needed() -> dict:
    sources = [{"data_file": __file__, "dataset_name": "GenericDataset"}]
    splits = {f"{split}_dataset": {"data_sources": sources} for split in ("train", "val")}
    return {"results_dir": "/tmp", "dataset": splits}


def depth_anything(state: dict) -> dict:
    start = "feature.dino.depth_anything."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def edgenext(state: dict, authors: bool) -> dict:
    keys = {key: (to_tao(key) if authors else key) for key in state if key.startswith(("feature.stem", "feature.stag"))}
    return {name.removeprefix("feature."): state[key] for key, name in keys.items()}


def test_random_backbone_needs_leave():
    with pytest.raises(SpecError, match="allow_random_backbone=true"):
        from_spec(spec(preset="tiny"))
    model = from_spec(spec(preset="tiny", max_disparity=96, stereo_backbone={"allow_random_backbone": True}))
    assert model.config.max_disparity == 96 and model.config.train_iters == 4


@pytest.mark.parametrize("authors", [False, True])
def test_backbone_files_start_a_training(tmp_path, tiny_state, authors):
    torch.save(depth_anything(tiny_state), tmp_path / "vit.pth")
    head = {"head.fc.weight": torch.zeros(3, 3), "norm.weight": torch.zeros(3)}
    torch.save({"state_dict": edgenext(tiny_state, authors) | head}, tmp_path / "edgenext.pth")
    paths = {
        "depth_anything_v2_pretrained_path": str(tmp_path / "vit.pth"),
        "edgenext_pretrained_path": str(tmp_path / "edgenext.pth"),
    }
    state = from_spec(spec(preset="tiny", stereo_backbone=paths)).state_dict()
    taken = [key for key in state if key.startswith(("feature.stem", "feature.stages", "feature.dino"))]
    assert all(torch.equal(state[key], tiny_state[key]) for key in taken)
    assert not torch.equal(state["proj_cmb.weight"], tiny_state["proj_cmb.weight"])


def test_backbone_files_in_the_wrong_place(tmp_path, tiny_state):
    torch.save(depth_anything(tiny_state), tmp_path / "vit.pth")
    torch.save(edgenext(tiny_state, False), tmp_path / "edgenext.pth")
    assert "depth_anything_v2_pretrained_path" in refusal(tmp_path / "vit.pth")
    assert "edgenext_pretrained_path" in refusal(tmp_path / "edgenext.pth")
    assert describe(tmp_path / "vit.pth")["encoder"] == "vitt"
    swapped = {"depth_anything_v2_pretrained_path": str(tmp_path / "edgenext.pth")}
    with pytest.raises(ModelError, match="no Depth Anything V2 file"):
        from_spec(spec(preset="tiny", stereo_backbone=swapped))
    other = {"depth_anything_v2_pretrained_path": str(tmp_path / "vit.pth")}
    with pytest.raises(ModelError, match=r"set model\.encoder=vitt"):
        from_spec(spec(encoder="vits", stereo_backbone=other))


@pytest.mark.parametrize("change", ["renamed", "missing", "unexpected"])
def test_a_backbone_file_with_another_key_is_an_error_that_names_it(tmp_path, tiny_state, change):
    """TAO's item 20: it loads such a file, and the key's weights stay random without a word."""
    state, key = depth_anything(tiny_state), "pretrained.blocks.2.attn.qkv.weight"
    if change == "unexpected":
        state["pretrained.more.weight"] = torch.zeros(1)
    else:
        value = state.pop(key)
    if change == "renamed":
        state["pretrained.blocks.2.attn.qvk.weight"] = value
    torch.save(state, tmp_path / "vit.pth")
    paths = {"depth_anything_v2_pretrained_path": str(tmp_path / "vit.pth")}
    with pytest.raises(ModelError) as error:
        from_spec(spec(preset="tiny", stereo_backbone=paths))
    named = {"renamed": [key, "qvk.weight"], "missing": [key], "unexpected": ["pretrained.more.weight"]}[change]
    assert str(tmp_path / "vit.pth") in str(error.value) and all(name in str(error.value) for name in named)


def test_a_checkpoint_decides_what_the_spec_leaves_unsaid(tmp_path):
    model = create_model(preset="tiny", max_disparity=96, valid_iters=5)
    save_checkpoint(model, tmp_path / "m.pth")
    path = str(tmp_path / "m.pth")
    assert from_spec(spec(), path).config == model.config
    assert from_spec(spec(preset="tiny"), path).config == model.config
    assert from_spec(spec(valid_iters=2), path).config.valid_iters == 2
    with pytest.raises(ModelError, match="encoder"):
        from_spec(spec(encoder="vitb"), path)


def test_a_checkpoint_that_the_disk_cannot_hold_is_named(tmp_path):
    """PyTorch says `enforce fail at inline_container.cc: unexpected pos`, and convert_checkpoint a traceback of it."""
    (tmp_path / "out").mkdir()
    save_checkpoint(create_model(preset="tiny"), tmp_path / "tiny.pth")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*x\.pth'"):
            convert_checkpoint(str(tmp_path / "tiny.pth"), tmp_path / "out/x.pth", "tao")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").iterdir())
