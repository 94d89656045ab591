"""Spec files as TAO's users have them load unchanged, and mean what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec import load_spec, results_dir
from stereo_core.spec.effects import without_effect
from stereo_core.spec.text import parse

TEMPLATES = Path(__file__).parent / "tao"
CASES = [
    ("convert_middlebury", "convert"),
    ("convert_kitti", "convert"),
    ("convert_kitti_2012", "convert"),
    ("train", "train"),
    ("evaluate", "evaluate"),
    ("inference", "inference"),
    ("export", "export"),
    ("quantize", "quantize"),
    ("gen_trt_engine", "gen_trt_engine"),
    ("deploy", "gen_trt_engine"),
    ("deploy", "trt_evaluate"),
    ("deploy", "trt_inference"),
    ("deploy", "evaluate"),
]


def leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*path, name))
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    else:
        yield path, tree


def look_up(spec: Any, path: tuple) -> Any:
    for part in path:
        spec = spec[part] if isinstance(part, int) else getattr(spec, part)
    return spec


def same(value: Any, written: Any) -> bool:
    if written is None or written == "???":
        return value in ("", None)
    if isinstance(value, float) and isinstance(written, str):
        return value == float(written)
    if isinstance(value, str):
        return value.lower() == str(written).lower()
    return value == written


@pytest.mark.parametrize(("template", "verb"), CASES)
def test_a_template_loads_and_every_value_arrives(workspace, template, verb):
    path = TEMPLATES / f"{template}.yaml"
    tree = parse(path.read_text(), "template")
    spec = load_spec(verb, path)
    checked = 0
    for keys, written in leaves(tree):
        if "data_sources" in keys and not _has_file(tree, keys):
            continue
        assert same(look_up(spec, keys), written), keys
        checked += 1
    assert checked >= 9


def _has_file(tree: Any, keys: tuple) -> bool:
    for part in keys[: keys.index("data_sources") + 2]:
        tree = tree[part]
    return bool(tree["data_file"])


def test_entries_without_a_file_are_no_data_source(workspace):
    spec = load_spec("train", TEMPLATES / "train.yaml")
    assert [source.data_file for source in spec.dataset.train_dataset.data_sources] == ["data/train.txt"]
    assert spec.dataset.test_dataset.data_sources == []


def test_tao_s_default_camera_counts_as_none(workspace):
    spec = load_spec("inference", TEMPLATES / "inference.yaml", ["dataset.baseline=0.54"])
    assert {"baseline", "focal_x"} & spec.dataset.model_fields_set == {"baseline"}


BACKBONE = "model.stereo_backbone.depth_anything_v2_pretrained_path"


@pytest.mark.parametrize("verb", ["evaluate", "inference"])
def test_beside_a_checkpoint_the_backbone_s_file_need_not_be_here(workspace, verb):
    """TAO's users evaluate with the file they trained with; the checkpoint holds those weights."""
    overrides = [f"{verb}.checkpoint=dn_model_latest.pth", f"{BACKBONE}=elsewhere/vitl.pth"]
    load_spec(verb, TEMPLATES / f"{verb}.yaml", overrides)
    (workspace / "empty.pth").touch()
    with pytest.raises(SpecError, match=rf"{BACKBONE}: the file is empty: empty\.pth"):
        load_spec(verb, TEMPLATES / f"{verb}.yaml", [overrides[0], f"{BACKBONE}=empty.pth"])


def test_a_training_from_scratch_needs_the_backbone_s_file_though_it_may_resume(workspace):
    gone = [f"{BACKBONE}=gone.pth", "train.resume_training_checkpoint_path=auto", "train.pretrained_model_path=''"]
    with pytest.raises(SpecError, match=rf"{BACKBONE}: no such file: gone\.pth"):
        load_spec("train", TEMPLATES / "train.yaml", gone)


@pytest.mark.parametrize(
    ("verb", "taken", "left_out"),
    [("inference", "checkpoint", "trt_engine"), ("trt_inference", "trt_engine", "checkpoint")],
)
def test_of_a_checkpoint_and_an_engine_the_verb_takes_its_own(workspace, verb, taken, left_out, caplog):
    caplog.set_level("INFO")
    files = {"checkpoint": "dn_model_latest.pth", "trt_engine": "model.engine"}
    overrides = [f"inference.{name}={file}" for name, file in files.items()]
    own = load_spec(verb, TEMPLATES / "inference.yaml", overrides).inference
    assert getattr(own, taken) == files[taken] and getattr(own, left_out) == ""
    assert f"{verb} uses {taken} ({files[taken]})" in caplog.text


def test_intervals_longer_than_the_training_end_with_it(workspace, caplog):
    caplog.set_level("INFO")
    overrides = ["train.num_epochs=1", "train.checkpoint_interval=10", "train.validation_interval=5"]
    train = load_spec("train", TEMPLATES / "train.yaml", overrides).train
    assert (train.checkpoint_interval, train.validation_interval) == (1, 1)
    assert "train.checkpoint_interval: 10 is more than train.num_epochs; using 1" in caplog.text
    steps = load_spec("train", TEMPLATES / "train.yaml", [*overrides, "train.checkpoint_interval_unit=step"]).train
    assert steps.checkpoint_interval == 10


def test_fast_foundation_stereo_loads_and_says_what_nothing_reads(workspace):
    spec = load_spec("train", TEMPLATES / "fast_train.yaml")
    assert spec.model.model_type == "FastFoundationStereo"
    assert spec.model.spx_2_gru_widths == [16, 12, 16, 24]
    unread = ["model.disp_head_input_dim", "model.classifier_mid", "model.cost_agg_conv_patch_padding"]
    assert [path for path, _ in without_effect("train", spec) if path.startswith("model.")] == unread


@pytest.mark.parametrize("verb", ["train", "evaluate", "inference", "export", "trt_evaluate"])
def test_the_networks_section_loads_in_every_verb(workspace, verb):
    template = "deploy" if verb.startswith("trt_") else verb
    model = parse((TEMPLATES / "fast_train.yaml").read_text(), "template")["model"]
    spec = load_spec(verb, TEMPLATES / f"{template}.yaml", [f"model={model}"])
    assert (spec.model.model_type, spec.model.gru_hidden) == ("FastFoundationStereo", 60)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("model.encoder=vitg", "model.encoder: vitg: FastFoundationStereo supports vits, vitb or vitl"),
        ("model.variant=tao", "model.variant: FastFoundationStereo has only one variant; leave it out"),
        (
            "model.n_gru_layers=2",
            "model.hidden_dims: [128]: give one width for each GRU level; model.n_gru_layers is 2",
        ),
        ("model.mask_widths=[32]", "model.mask_widths: the list needs at least 2 entries, but has 1"),
        ("model.volume_dim=48", "model.volume_dim: 48: the network has 28 cost volume channels; set 28"),
    ],
)
def test_fast_foundation_stereo_refuses_what_it_has_not(workspace, override, complaint):
    with pytest.raises(SpecError) as error:
        load_spec("train", TEMPLATES / "fast_train.yaml", [override])
    assert str(error.value).endswith(complaint)


def test_fast_foundation_stereo_has_no_preset(workspace):
    """The preset's own encoder, which the user did not set, is not mentioned."""
    with pytest.raises(SpecError) as error:
        load_spec("train", None, ["model.model_type=FastFoundationStereo", "model.preset=tiny"])
    assert "model.preset: tiny is" in str(error.value)
    assert "model.encoder" not in str(error.value)


def test_keys_of_the_other_network_have_no_effect(workspace):
    (workspace / "vit.pth").write_bytes(b"x")
    vit = "model.stereo_backbone.depth_anything_v2_pretrained_path"
    idle = dict(without_effect("train", load_spec("train", TEMPLATES / "fast_train.yaml", [f"{vit}=vit.pth"])))
    assert idle[vit].startswith("FastFoundationStereo has no ViT")
    width = "model.gru_hidden"
    begun = load_spec("train", TEMPLATES / "train.yaml", [f"{width}=60"])
    assert width not in dict(without_effect("train", begun)), "its checkpoint decides which network it is"
    idle = load_spec("train", TEMPLATES / "train.yaml", [f"{width}=60", "train.pretrained_model_path="])
    assert dict(without_effect("train", idle))[width].startswith("it is for FastFoundationStereo")


def test_mono_is_refused_where_a_network_is_built_and_ignored_for_engines(workspace):
    load_spec("gen_trt_engine", TEMPLATES / "gen_trt_engine.yaml")
    with pytest.raises(SpecError, match=r"model\.model_type: MetricDepthAnything is a monocular network"):
        load_spec("train", TEMPLATES / "train.yaml", ["model.model_type=metricdepthanything"])


def test_with_an_engine_the_network_section_is_not_judged(workspace):
    spec = load_spec("evaluate", TEMPLATES / "deploy.yaml", ["model.model_type=MetricDepthAnything"])
    assert results_dir(spec, "evaluate") == Path("results/trt_evaluate")
    assert spec.evaluate.resize == "pad"


def test_kitti_2012_converts(workspace):
    """The first frame of each pair, from the folder above `training` and from `training` itself, as people give it."""
    from stereo_core.run.perform import perform

    training = workspace / "data/KITTI_2012/training"
    for folder in ("colored_0", "colored_1", "disp_noc"):
        (training / folder).mkdir(parents=True)
        for frame in ("000000_10.png", "000000_11.png", "000001_10.png"):
            if folder != "disp_noc" or "_10" in frame:
                (training / folder / frame).touch()
    for root in ("data/KITTI_2012", "data/KITTI_2012/training"):
        spec = load_spec("convert", TEMPLATES / "convert_kitti_2012.yaml", [f"data_root={root}"])
        assert perform("convert", spec) == 0
        lines = [line.split() for line in (workspace / "results/test.txt").read_text().splitlines()]
        expected = [[f"{training}/{f}/00000{n}_10.png" for f in ("colored_0", "colored_1", "disp_noc")] for n in (0, 1)]
        assert lines == expected
