"""Checkpoints of both networks: other people's files -> our state dict, and back.

Our keys are NVlabs' names, whatever the variant; `names.py` has TAO's.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stereo_core.errors import ModelError, SpecError
from stereo_core.files import atomic_path
from stereo_core.models.fast_foundation_stereo import checkpoints as fast
from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.files import WeightFile, first_names, read_weights, weights_file
from stereo_core.models.foundation_stereo.config import (
    PRESET_SETTINGS,
    PRESETS,
    SETTINGS,
    VIT,
    make_config,
    settings_of,
)
from stereo_core.models.foundation_stereo.model import FoundationStereo, StereoNetwork
from stereo_core.models.names import edgenext_from_authors, from_tao, to_tao
from stereo_core.models.quantized import dequantized, formats_of, read_quantization, round_activations
from stereo_core.spec.text import parse

LOG = logging.getLogger(__name__)
LAYOUTS = ("nvlabs", "tao")
DINO = "feature.dino.depth_anything."
POSITIONS = "pretrained.pos_embed"
# Settings in NVlabs' cfg.yaml beside the file and in its pickled module -> ours, where the weights can not tell.
NVLABS = {
    "max_disp": "max_disparity",
    "train_iters": "train_iters",
    "valid_iters": "valid_iters",
    "normalize": "gwc_feature_normalize",
}


@dataclass
class Checkpoint:
    """A checkpoint under our names."""

    file: WeightFile
    network: str  # FoundationStereo or FastFoundationStereo
    state: dict[str, Tensor]
    names: str  # names in the file: nvlabs or tao
    found: dict[str, Any]  # settings that the weights' keys and shapes fix
    said: dict[str, Any]  # settings written beside the weights

    @property
    def settings(self) -> dict[str, Any]:
        return self.said | self.found


def load_model(path: str | Path, **overrides: Any) -> StereoNetwork:
    """The network of a checkpoint, in float32, with its weights.

    Encoder, variant and lookup sizes, and FastFoundationStereo's topology and widths, come from the keys and shapes;
    preset, max_disparity, attention and iterations from the settings our trainer writes into the file or from
    `cfg.yaml` beside it, else the published values. A
    log line says which max_disparity it is and why, a warning where nobody said.

    Args:
        path: what `read_weights` takes: a file of any layout, "starter", a training's folder with a choice.
        overrides: settings as in `create_model`; they win, unless the weights contradict them. `model_type`: the
            network that is expected.

    Raises:
        ModelError: no usable checkpoint, one of another network, or settings that its weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    asked = given.pop("model_type", checkpoint.network)
    if asked.lower() != checkpoint.network.lower():
        raise ModelError(_contradiction(path, "model_type", asked, checkpoint.network))
    with torch.device("meta"):
        model = _make_network(checkpoint, given)
    quantization = read_quantization(checkpoint.file.extra, path)
    state = checkpoint.state if quantization is None else dequantized(checkpoint.state, quantization, path)
    _load(model, state, path, "the file is of another network or incomplete")
    if quantization is not None:
        round_activations(model, quantization, formats_of(checkpoint.state))
    if checkpoint.network == "FoundationStereo":
        level = logging.INFO if "max_disparity" in given | checkpoint.said else logging.WARNING
        LOG.log(level, "%s: max_disparity %d px, %s", path, *_range(checkpoint, given))
    return model


def _make_network(checkpoint: Checkpoint, given: dict[str, Any]) -> nn.Module:
    path, found = checkpoint.file.path, checkpoint.found
    if checkpoint.network == "FastFoundationStereo":
        return FastFoundationStereo(fast.config_of(found, checkpoint.said, given, path))
    given = {key: value for key, value in given.items() if key not in fast.SPEC_KEYS}
    for key, value in found.items():
        if key in given and given[key] != value:
            raise ModelError(_contradiction(path, key, given[key], value))
    return FoundationStereo(make_config(**checkpoint.said | given | found))


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
        ModelError: the source is no checkpoint of ours, the target is the source, `to` is unknown, or there is no such
            layout for this network.
    """
    source = weights_file(source)
    if Path(target).exists() and Path(target).samefile(source):
        raise ModelError(f"{target}: is the checkpoint to be converted; writing it would lose its training state")
    checkpoint = read_checkpoint(source)
    if read_quantization(checkpoint.file.extra, source):
        raise ModelError(f"{source}: a quantised checkpoint has one layout; convert the one it was made from")
    variant = checkpoint.found.get("variant", to)
    if variant != to:
        LOG.warning("%s: a network of variant %s; the %s layout does not make it run in %s's code",
                    source, variant, to, "TAO" if to == "tao" else "NVlabs")  # fmt: skip
    extra = checkpoint.file.extra
    epoch, step = (int(extra.get(key, 0)) for key in ("epoch", "global_step"))
    _write(target, checkpoint.state, to, checkpoint.settings, epoch, step)


def describe(path: str | Path) -> dict[str, Any]:
    """What a weight file holds, without building a network.

    `network` is FoundationStereo, FastFoundationStereo, DepthAnythingV2 or EdgeNeXt. `disparity_attention` and
    `max_disparity` are what `load_model` would choose, `max_disparity_from` who says so.

    Raises:
        ModelError: no usable weight file.
    """
    file = read_weights(path)
    known: dict[str, Any] = {"layout": file.layout, "prefix": file.prefix, "network": _network(file)}
    tensors = {"tensors": len(file.state), "parameters": _parameters(file.state)}
    tensors["dtypes"] = sorted({str(t.dtype).removeprefix("torch.") for t in file.state.values()})
    if known["network"] == "FoundationStereo":
        checkpoint = _recognise(file)
        settings = checkpoint.settings
        attention = settings.get("disparity_attention") or _usual_attention(settings["variant"])
        known |= {"names": checkpoint.names} | settings | {"disparity_attention": attention}
        known["max_disparity"], known["max_disparity_from"] = _range(checkpoint, {})
    elif known["network"] == "FastFoundationStereo":
        checkpoint = _recognise(file)
        known |= {"names": checkpoint.names} | checkpoint.settings
    elif known["network"] == "DepthAnythingV2":
        known["encoder"] = _encoder(file.state[POSITIONS].shape[-1], path)
    if quantization := read_quantization(file.extra, path):
        known |= {"quantization": quantization.backend, "quantized_layers": len(quantization.weight_scales)}
    stages = {key: file.extra[key] for key in ("epoch", "global_step") if key in file.extra}
    return known | tensors | stages


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any layout, its tensors as they are in the file.

    Raises:
        ModelError: no usable file, or of neither network.
    """
    return _recognise(read_weights(path))


def _recognise(file: WeightFile) -> Checkpoint:
    network = _network(file)
    if network in PARTS:
        raise ModelError(f"{file.path}: {PARTS[network]}")
    tao = any(key.startswith(("feature.downsample_layers.", "cost_agg.atts.cost_vol_disp.")) for key in file.state)
    state = {from_tao(key): value for key, value in file.state.items()} if tao else dict(file.state)
    names = "tao" if tao else "nvlabs"
    if network == "FastFoundationStereo":
        found, said = fast.fixed_by_weights(state, file.path), _said(file, fast.SETTINGS)
        return Checkpoint(file, network, fast.complete(state), names, found, said)
    _complete_aliases(state)
    found, said = _fixed_by_weights(state, file.path), _said(file, SETTINGS)
    if found["encoder"] == "vitt":
        stored = said.pop("preset", None)
        (found if stored else said)["preset"] = stored or _likely_preset(said, file.path)
    return Checkpoint(file, network, state, names, found, said)


def _complete_aliases(state: dict[str, Tensor]) -> None:
    """The context network's norm3 is also downsample.1; safetensors keeps one of the two names."""
    for key in [k for k in state if k.startswith("cnet.")]:
        for one, other in ((".norm3.", ".downsample.1."), (".downsample.1.", ".norm3.")):
            if one in key:
                state.setdefault(key.replace(one, other), state[key])


# Recognition

PARTS = {
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


def _fixed_by_weights(state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    encoder = _encoder(state[DINO + POSITIONS].shape[-1], path)
    found = {
        "encoder": encoder,
        "variant": "nvlabs" if "corr_stem.1.bn.weight" in state else "tao",
        "n_gru_layers": sum(f"update_block.gru{scale}.conv0.0.weight" in state for scale in ("04", "08", "16")),
    }
    if encoder != "vitt":  # the presets are told apart by what is stored beside the weights
        found["preset"] = None
    lookup, patch = (state.get(key) for key in ("update_block.encoder.convc1.weight", "cost_agg.conv_patch.1.weight"))
    if lookup is not None and patch is not None:
        found |= _lookup_sizes(lookup.shape[1], patch.shape[0] + 1)
    return found


def _likely_preset(said: dict[str, Any], path: str | Path) -> str:
    """Of the presets, whose shapes are the same, the one of the stored max_disparity, else tiny."""
    ranges = {PRESET_SETTINGS[name]["max_disparity"]: name for name in PRESETS}
    preset = ranges.get(said.get("max_disparity"), "tiny")
    LOG.info("%s: its shapes are those of presets %s; %s is taken unless model.preset says otherwise",
             path, " and ".join(PRESETS), preset)  # fmt: skip
    return preset


def _lookup_sizes(width: int, channels: int) -> dict[str, Any]:
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


def _said(file: WeightFile, names: tuple[str, ...]) -> dict[str, Any]:
    """Settings `names` written into the file by our trainer or held by a module, else those of cfg.yaml beside it."""
    hyper = file.extra.get("hyper_parameters")
    if isinstance(hyper, dict) and isinstance(hyper.get("model"), dict):
        return {key: hyper["model"][key] for key in names if key in hyper["model"]}
    config = file.extra["settings"] if file.layout == "module" else _cfg_yaml(file.path.parent / "cfg.yaml")
    return {ours: config[theirs] for theirs, ours in NVLABS.items() if theirs in config and ours in names}


def _cfg_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = parse(path.read_text(encoding="utf-8"), str(path))
    except (SpecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: the checkpoint's settings can not be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: the checkpoint's settings are not a mapping")
    return config


_UNSAID = "the file does not say which range its weights were trained for; if it is another, set model.max_disparity"


def _range(checkpoint: Checkpoint, given: dict[str, Any]) -> tuple[int, str]:
    """The network's max_disparity in px, and who says so. No shape tells it, and a wrong one runs, and errs."""
    if "max_disparity" in given:
        return given["max_disparity"], "as model.max_disparity says"
    if "max_disparity" in checkpoint.said:
        return checkpoint.said["max_disparity"], "as stored with the weights"
    preset = (checkpoint.said | given | checkpoint.found).get("preset")
    usual = f"the {preset} preset's value" if preset else "the published value"
    return PRESET_SETTINGS[preset]["max_disparity"], f"{usual}: {_UNSAID}"


def _contradiction(path: str | Path, key: str, given: Any, found: Any) -> str:
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


def _write(
    path: str | Path, state: dict[str, Tensor], layout: str, settings: dict[str, Any], epoch: int, step: int
) -> None:
    if layout not in LAYOUTS:
        raise ModelError(f"checkpoint layout {layout!r} is unknown; there are {', '.join(LAYOUTS)}")
    if layout == "tao" and "cnet.conv04.0.weight" in state:
        raise ModelError(f"{path}: TAO has no un-pruned FastFoundationStereo; write it in layout nvlabs")
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
    state = {edgenext_from_authors(key): t for key, t in file.state.items() if not key.startswith(("norm.", "head."))}
    backbone = nn.Module()
    backbone.stem, backbone.stages = model.feature.stem, model.feature.stages
    _load(backbone, state, path, "EdgeNeXt-small is needed (widths 48, 96, 160, 304)")
