"""Checkpoints of FoundationStereo: other people's files -> our state dict, and back.

Our keys are NVlabs' names, whatever the variant. TAO's names exist in this file only.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from stereo_core.errors import ModelError
from stereo_core.files import atomic_path
from stereo_core.models.files import WeightFile, first_names, read_weights
from stereo_core.models.foundation_stereo.config import PRESET_SETTINGS, VIT, make_config, settings_of
from stereo_core.models.foundation_stereo.model import FoundationStereo
from stereo_core.models.quantized import dequantized, formats_of, read_quantization, round_activations

LOG = logging.getLogger(__name__)
LAYOUTS = ("nvlabs", "tao")
DINO = "feature.dino.depth_anything."
POSITIONS = "pretrained.pos_embed"
# NVlabs' cfg.yaml beside the file -> our settings, where the keys of the weights can not tell.
CFG_YAML = {"max_disp": "max_disparity", "train_iters": "train_iters", "valid_iters": "valid_iters"}
# timm's and the authors' name of the same EdgeNeXt layer
EDGENEXT = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}


@dataclass
class Checkpoint:
    """A FoundationStereo checkpoint under our names."""

    file: WeightFile
    state: dict[str, Tensor]
    names: str  # names in the file: nvlabs or tao
    found: dict  # settings that the weights' keys and shapes fix
    said: dict  # settings written beside the weights

    @property
    def settings(self) -> dict:
        return self.said | self.found


def load_model(path: str | Path, **overrides) -> nn.Module:
    """The network of a checkpoint, in float32, with its weights.

    Encoder, variant, preset and lookup sizes come from the keys and shapes; max_disparity, attention and iterations
    from the settings our trainer writes into the file or from `cfg.yaml` beside it, else the published values. A log
    line says which max_disparity it is and why, a warning where nobody said.

    Args:
        path: file of any layout that `read_weights` knows.
        overrides: settings as in `create_model`; they win, unless the weights contradict them.

    Raises:
        ModelError: no usable checkpoint, one of another network, or settings that its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    for key, value in checkpoint.found.items():
        if key in given and given[key] != value:
            raise ModelError(_contradiction(path, key, given[key], value))
    settings = checkpoint.said | given | checkpoint.found
    with torch.device("meta"):
        model = FoundationStereo(make_config(**settings))
    quantization = read_quantization(checkpoint.file.extra, path)
    state = checkpoint.state if quantization is None else dequantized(checkpoint.state, quantization, path)
    _load(model, state, path, "the file is of another network or incomplete")
    if quantization is not None:
        round_activations(model, quantization, formats_of(checkpoint.state))
    known = "max_disparity" in given | checkpoint.said
    LOG.log(logging.INFO if known else logging.WARNING, "%s: max_disparity %d px, %s", path, *_range(checkpoint, given))
    return model


def save_checkpoint(
    model: nn.Module, path: str | Path, layout: str = "nvlabs", *, epoch: int = 0, global_step: int = 0
) -> None:
    """Write the weights, whole or not at all.

    Layout nvlabs: {"model": ...}, NVlabs' names. Layout tao: a Lightning dict, TAO's names behind "model.". Both carry
    the settings. The layout is that of the file; a network of one variant does not become the other's.
    """
    settings = settings_of(model.config)
    _write(path, model.state_dict(), layout, settings, epoch, global_step)


def convert_checkpoint(source: str | Path, target: str | Path, to: str) -> None:
    """Write a checkpoint in another layout, every tensor bit for bit; see `save_checkpoint` for the layouts.

    Epoch, step and settings are kept; optimizer states are not.

    Raises:
        ModelError: the source is no FoundationStereo checkpoint, the target is the source, or `to` is unknown.
    """
    if Path(target).exists() and Path(target).samefile(source):
        raise ModelError(f"{target}: is the checkpoint to be converted; writing it would lose its training state")
    checkpoint = read_checkpoint(source)
    if read_quantization(checkpoint.file.extra, source):
        raise ModelError(f"{source}: a quantised checkpoint has one layout; convert the one it was made from")
    variant = checkpoint.found["variant"]
    if variant != to:
        LOG.warning("%s: a network of variant %s; the %s layout does not make it run in %s's code",
                    source, variant, to, "TAO" if to == "tao" else "NVlabs")  # fmt: skip
    extra = checkpoint.file.extra
    epoch, step = (int(extra.get(key, 0)) for key in ("epoch", "global_step"))
    _write(target, checkpoint.state, to, checkpoint.settings, epoch, step)


def describe(path: str | Path) -> dict:
    """What a weight file holds, without building a network.

    `network` is FoundationStereo, DepthAnythingV2 or EdgeNeXt. `disparity_attention` and `max_disparity` are what
    `load_model` would choose, `max_disparity_from` who says so.

    Raises:
        ModelError: no usable weight file.
    """
    file = read_weights(path)
    known = {"layout": file.layout, "prefix": file.prefix, "network": _network(file)}
    tensors = {"tensors": len(file.state), "parameters": _parameters(file.state)}
    tensors["dtypes"] = sorted({str(t.dtype).removeprefix("torch.") for t in file.state.values()})
    if known["network"] == "FoundationStereo":
        checkpoint = _recognise(file)
        settings = checkpoint.settings
        attention = settings.get("disparity_attention") or _usual_attention(settings["variant"])
        known |= {"names": checkpoint.names} | settings | {"disparity_attention": attention}
        known["max_disparity"], known["max_disparity_from"] = _range(checkpoint, {})
    elif known["network"] == "DepthAnythingV2":
        known["encoder"] = _encoder(file.state[POSITIONS].shape[-1], path)
    if quantization := read_quantization(file.extra, path):
        known |= {"quantization": quantization.backend, "quantized_layers": len(quantization.weight_scales)}
    stages = {key: file.extra[key] for key in ("epoch", "global_step") if key in file.extra}
    return known | tensors | stages


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a FoundationStereo checkpoint of any layout, its tensors as they are in the file.

    Raises:
        ModelError: no usable file, or not of a FoundationStereo network.
    """
    return _recognise(read_weights(path))


def _recognise(file: WeightFile) -> Checkpoint:
    network = _network(file)
    if network != "FoundationStereo":
        raise ModelError(f"{file.path}: {OTHER_NETWORKS[network]}")
    tao = any(key.startswith(("feature.downsample_layers.", "cost_agg.atts.cost_vol_disp.")) for key in file.state)
    state = {from_tao(key): value for key, value in file.state.items()} if tao else dict(file.state)
    _complete_aliases(state)
    return Checkpoint(file, state, "tao" if tao else "nvlabs", _fixed_by_weights(state, file.path), _said(file))


# Names


def from_tao(key: str) -> str:
    """TAO's name of a weight -> ours."""
    key = key.replace("cost_agg.atts.cost_vol_disp.", "cost_agg.atts.4.")
    if key.startswith("feature."):
        return "feature." + _edgenext_from_authors(key.removeprefix("feature."))
    if key.startswith("cnet.norm."):
        return key
    return key.replace(".norm.", ".bn.")


def to_tao(key: str) -> str:
    """Our name of a weight -> TAO's."""
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


def _edgenext_from_authors(key: str) -> str:
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


def _complete_aliases(state: dict[str, Tensor]) -> None:
    """The context network's norm3 is also downsample.1; safetensors keeps one of the two names."""
    for key in [k for k in state if k.startswith("cnet.")]:
        for one, other in ((".norm3.", ".downsample.1."), (".downsample.1.", ".norm3.")):
            if one in key:
                state.setdefault(key.replace(one, other), state[key])


# Recognition

OTHER_NETWORKS = {
    "FastFoundationStereo": "a FastFoundationStereo checkpoint; that network is not available here",
    "DepthAnythingV2": "only the ViT branch (Depth Anything V2); it belongs in "
    "model.stereo_backbone.depth_anything_v2_pretrained_path",
    "EdgeNeXt": "only an EdgeNeXt; it belongs in model.stereo_backbone.edgenext_pretrained_path",
}


def _network(file: WeightFile) -> str:
    state = file.state
    if any(key.startswith("cnet.conv04.") for key in state):
        return "FastFoundationStereo"
    if any(key.startswith("cost_agg.") for key in state) and DINO + POSITIONS in state:
        return "FoundationStereo"
    if POSITIONS in state and any(key.startswith("depth_head.") for key in state):
        return "DepthAnythingV2"
    if any(key.startswith(("stem.0.", "downsample_layers.0.")) for key in state):
        return "EdgeNeXt"
    raise ModelError(f"{file.path}: not a FoundationStereo checkpoint; its first keys are {first_names(state)}")


def _fixed_by_weights(state: dict[str, Tensor], path: str | Path) -> dict:
    encoder = _encoder(state[DINO + POSITIONS].shape[-1], path)
    found = {
        "encoder": encoder,
        "variant": "nvlabs" if "corr_stem.1.bn.weight" in state else "tao",
        "preset": "tiny" if encoder == "vitt" else None,
        "n_gru_layers": sum(f"update_block.gru{scale}.conv0.0.weight" in state for scale in ("04", "08", "16")),
    }
    lookup, patch = (state.get(key) for key in ("update_block.encoder.convc1.weight", "cost_agg.conv_patch.1.weight"))
    if lookup is not None and patch is not None:
        found |= _lookup_sizes(lookup.shape[1], patch.shape[0] + 1)
    return found


def _lookup_sizes(width: int, channels: int) -> dict:
    """Levels and radius of a lookup of levels * channels * (2 radius + 1) values."""
    for levels in (1, 2):
        taps = width // (levels * channels)
        if taps * levels * channels == width and taps % 2:
            return {"corr_levels": levels, "corr_radius": taps // 2}
    return {}


def _encoder(dim: int, path: str | Path) -> str:
    for name, widths in VIT.items():
        if widths.dim == dim:
            return name
    raise ModelError(f"{path}: its ViT is {dim} wide; known are {', '.join(f'{n} {w.dim}' for n, w in VIT.items())}")


def _usual_attention(variant: str) -> str:
    return make_config(variant=variant).disparity_attention


def _said(file: WeightFile) -> dict:
    """Settings written into the file by our trainer, else those of cfg.yaml beside it."""
    hyper = file.extra.get("hyper_parameters")
    if isinstance(hyper, dict) and isinstance(hyper.get("model"), dict):
        return settings_of(hyper["model"])
    path = file.path.parent / "cfg.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the checkpoint's settings can not be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: the checkpoint's settings are not a mapping")
    return {ours: config[theirs] for theirs, ours in CFG_YAML.items() if theirs in config}


_UNSAID = "the file does not say which range its weights were trained for; if it is another, set model.max_disparity"


def _range(checkpoint: Checkpoint, given: dict) -> tuple[int, str]:
    """The network's max_disparity in px, and who says so. No shape tells it, and a wrong one runs, and errs."""
    if "max_disparity" in given:
        return given["max_disparity"], "as model.max_disparity says"
    if "max_disparity" in checkpoint.said:
        return checkpoint.said["max_disparity"], "as stored with the weights"
    preset = checkpoint.found["preset"]
    usual = f"the {preset} preset's value" if preset else "the published value"
    return PRESET_SETTINGS[preset]["max_disparity"], f"{usual}: {_UNSAID}"


def _contradiction(path: str | Path, key: str, given, found) -> str:
    if key == "encoder":
        widths = f"{VIT[found].dim} wide" + ("" if given not in VIT else f", {given} is {VIT[given].dim}")
        return f"{path}: holds encoder {found} ({widths}); set model.encoder={found}"
    return f"{path}: holds a network of {key} {found}, not {given}; set model.{key}={found} or leave it out"


def _parameters(state: dict[str, Tensor]) -> int:
    """Numbers that are trained or frozen: no statistics, and no weight twice."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    aliases = {key for key in state if key.replace(".downsample.1.", ".norm3.") != key
               and key.replace(".downsample.1.", ".norm3.") in state}  # fmt: skip
    return sum(t.numel() for key, t in state.items() if not key.endswith(buffers) and key not in aliases)


# Reading and writing


def _load(module: nn.Module, state: dict[str, Tensor], path: str | Path, mend: str) -> None:
    """Take over every tensor; ModelError where one is missing, too many or of another shape."""
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shaped = [f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
              for key in wanted if key in state and state[key].shape != wanted[key].shape]  # fmt: skip
    faults = [f"{len(names)} {what} ({first_names(names, 3)})"
              for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
              if names]  # fmt: skip
    if faults:
        raise ModelError(f"{path}: the weights do not fit: {'; '.join(faults)}; {mend}")
    module.load_state_dict({key: t.to(wanted[key].dtype) for key, t in state.items()}, assign=True)


def _write(path: str | Path, state: dict[str, Tensor], layout: str, settings: dict, epoch: int, step: int) -> None:
    if layout not in LAYOUTS:
        raise ModelError(f"checkpoint layout {layout!r} is unknown; there are {', '.join(LAYOUTS)}")
    common = {"epoch": epoch, "global_step": step, "hyper_parameters": {"model": settings}}
    state = {key: value.detach().cpu() for key, value in state.items()}
    if layout == "nvlabs":
        content = {"model": state} | common
    else:
        version = importlib.metadata.version("pytorch-lightning")
        named = {f"model.{to_tao(key)}": value for key, value in state.items()}
        content = {"state_dict": named, "pytorch-lightning_version": version} | common
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


# Backbones, for training from scratch


def load_depth_anything(model: nn.Module, path: str | Path) -> None:
    """Depth Anything V2 weights (keys pretrained.*, depth_head.*) into the frozen branch.

    Raises:
        ModelError: not such a file, or of another ViT; the message says which encoder fits.
    """
    file = read_weights(path)
    if _network(file) != "DepthAnythingV2":
        raise ModelError(f"{path}: not a Depth Anything V2 file (keys pretrained.* and depth_head.*)")
    fits = _encoder(file.state[POSITIONS].shape[-1], path)
    if fits != model.config.encoder:
        raise ModelError(_contradiction(path, "encoder", model.config.encoder, fits))
    _load(model.feature.dino.depth_anything, file.state, path, "the file is of another network or incomplete")


def load_edgenext(model: nn.Module, path: str | Path) -> None:
    """EdgeNeXt-small weights, in timm's or the authors' names; a classifier's norm and head are left out.

    Raises:
        ModelError: not such a file, or of another size.
    """
    file = read_weights(path)
    if _network(file) != "EdgeNeXt":
        raise ModelError(f"{path}: not an EdgeNeXt file (keys stem.*, stages.*)")
    state = {_edgenext_from_authors(key): t for key, t in file.state.items() if not key.startswith(("norm.", "head."))}
    backbone = nn.Module()
    backbone.stem, backbone.stages = model.feature.stem, model.feature.stages
    _load(backbone, state, path, "EdgeNeXt-small is needed (widths 48, 96, 160, 304)")
