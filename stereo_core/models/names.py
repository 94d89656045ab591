"""Names of weights: ours are NVlabs'; TAO's occur only in this file."""

from __future__ import annotations

import re

# timm's and the authors' names of the same EdgeNeXt layers
EDGENEXT = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}


def from_tao(key: str) -> str:
    """TAO's name of a weight -> ours."""
    key = re.sub(r"^corr_feature_att\.(\d)", r"corr_feature_att.layers.\1", key)
    key = re.sub(r"^classifier\.0\.(weight|bias)$", r"classifier.layers.0.\1", key)
    key = key.replace("cost_agg.atts.cost_vol_disp.", "cost_agg.atts.4.")
    if key.startswith("feature."):
        return "feature." + edgenext_from_authors(key.removeprefix("feature."))
    if key.startswith("cnet.norm."):
        return key
    return key.replace(".norm.", ".bn.")


def to_tao(key: str) -> str:
    """Our name of a weight -> TAO's."""
    key = re.sub(r"^(corr_feature_att|classifier)\.layers\.", r"\1.", key)
    key = key.replace("cost_agg.atts.4.", "cost_agg.atts.cost_vol_disp.")
    if not key.startswith("feature."):
        return key.replace(".bn.", ".norm.")
    if match := re.fullmatch(r"feature\.stem\.(.+)", key):
        return f"feature.downsample_layers.0.{match[1]}"
    if match := re.fullmatch(r"feature\.stages\.(\d)\.downsample\.(.+)", key):
        return f"feature.downsample_layers.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"feature\.stages\.(\d)\.blocks\.(\d+)\.(.+)", key):
        layer = match[3]
        for ours, theirs in EDGENEXT.items():
            layer = layer.replace(ours, theirs)
        return f"feature.stages.{match[1]}.{match[2]}.{layer}"
    return key


def edgenext_from_authors(key: str) -> str:
    """The authors' name of a layer of EdgeNeXt -> timm's, which is ours."""
    if match := re.fullmatch(r"downsample_layers\.0\.(.+)", key):
        return f"stem.{match[1]}"
    if match := re.fullmatch(r"downsample_layers\.(\d)\.(.+)", key):
        return f"stages.{match[1]}.downsample.{match[2]}"
    if match := re.fullmatch(r"stages\.(\d)\.(\d+)\.(.+)", key):
        layer = match[3]
        for ours, theirs in EDGENEXT.items():
            layer = layer.replace(theirs, ours)
        return f"stages.{match[1]}.blocks.{match[2]}.{layer}"
    return key
