"""FastFoundationStereo's state dict is the published one, and its settings are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from stereo_core.errors import ModelError
from stereo_core.models import create_model, from_spec, network_facts
from stereo_core.spec.loading import build
from stereo_core.spec.text import parse


def on_meta(**settings):
    with torch.device("meta"):
        return create_model("FastFoundationStereo", **settings)


@pytest.mark.parametrize(
    ("topology", "file", "parameters", "used"),
    [
        ("unpruned", "state_dict_ffs_unpruned.json", 20_047_818, 19_605_066),
        ("bp2", "state_dict_ffs_bp2_serialize.json", 17_654_857, 14_600_541),
    ],
)
def test_names_shapes_and_types(shared, topology, file, parameters, used):
    wanted = json.loads((shared / "model" / file).read_text())["state_dict"]
    model = on_meta(topology=topology)
    found = {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in model.state_dict().items()}
    assert found == {key: (tuple(shape), dtype) for key, shape, dtype in wanted}
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == used


def test_offsets_are_the_networks_own_whatever_is_loaded():
    model = create_model("FastFoundationStereo")
    state = model.state_dict()
    assert state["dx"].flatten().tolist() == list(range(-4, 5))
    model.load_state_dict(state | {"dx": torch.zeros_like(state["dx"])})
    model.load_state_dict({key: value for key, value in state.items() if key != "dx"})
    assert model.dx.flatten().tolist() == list(range(-4, 5))


def test_tao_defaults_make_the_network_that_the_facts_count():
    from stereo_core.models.fast_foundation_stereo.config import complete_widths

    model = on_meta(widths=complete_widths({}, 128), hidden_dims=[128])
    assert len(model.state_dict()) == 722
    assert sum(p.numel() for p in model.parameters()) == 22_196_800


def test_the_page_s_spec_is_the_published_network(caplog):
    """TAO's default widths are others, and the log says so."""
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    caplog.set_level("INFO")
    with torch.device("meta"):
        assert from_spec(build("train", parse(text, "page"))).config == on_meta().config
        assert not caplog.text
        other = from_spec(build("train", {"model": {"model_type": "FastFoundationStereo", "gru_hidden": 128}}))
    assert other.config.widths.stem_2_widths == (32, 32)
    assert "stem_2_widths" in caplog.text and "gru_hidden" not in caplog.text
    assert "TAO's defaults, since the spec leaves them out" in caplog.text


def test_a_network_without_a_vit_has_no_encoder():
    facts = {"variant": "fast", "max_disparity": 192, "valid_iters": 8}
    assert network_facts(on_meta().config) == facts
    classic = {"encoder": "vits", "variant": "nvlabs", "max_disparity": 416, "valid_iters": 22}
    with torch.device("meta"):
        assert network_facts(create_model(encoder="vits").config) == classic


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topology": "bp3"}, "topology 'bp3' is unknown; choose one of bp2, unpruned"),
        ({"encoder": "vitg"}, "encoder 'vitg' is unknown"),
        ({"max_disparity": 100}, "max_disparity 100 .* use 96 or 128"),
        ({"variant": "tao"}, "unknown model setting 'variant'"),
        ({"widths": {"gru": 3}}, "unknown width 'gru'"),
        ({"widths": {"mask_widths": [32]}}, r"mask_widths \[32\]: expected 2 numbers"),
        ({"widths": {"gru_hidden": [60]}}, r"gru_hidden \[60\]: expected one number"),
        ({"widths": {"gru_hidden": 64}}, r"cnet_conv04_widths\[0\] is 60 and gru_hidden is 64, but they must be equal"),
        ({"widths": {"cam_mid_channels": 0}}, "cam_mid_channels is 0; it must be at least 1"),
        ({"hidden_dims": []}, "hidden_dims is empty"),
    ],
)
def test_bad_settings_name_the_key_and_the_mend(settings, message):
    with pytest.raises(ModelError, match=message):
        on_meta(**settings)
