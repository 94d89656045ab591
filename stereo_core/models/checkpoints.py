"""Checkpoints of both networks: other people's files -> our state dict, and back.

Our keys are NVlabs' names for both variants; `names.py` translates TAO's.
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
from stereo_core.models.files import WeightFile, first_names, read_weights, weights_file, write_torch
from stereo_core.models.foundation_stereo.config import (
    PRESET_SETTINGS,
    PRESETS,
    SETTINGS,
    VIT,
    make_config,
    settings_of,
)
from stereo_core.models.foundation_stereo.model import FoundationStereo, StereoNetwork
from stereo_core.models.names import from_tao, to_tao
from stereo_core.models.quantized import dequantized, formats_of, read_quantization, round_activations
from stereo_core.spec.text import parse

LOG = logging.getLogger(__name__)
LAYOUTS = ("nvlabs", "tao")
DINO = "feature.dino.depth_anything."
POSITIONS = "pretrained.pos_embed"
# Settings that the weights do not show: names in NVlabs' cfg.yaml and pickled module -> ours.
NVLABS = {
    "max_disp": "max_disparity",
    "train_iters": "train_iters",
    "valid_iters": "valid_iters",
    "normalize": "gwc_feature_normalize",
}


@dataclass
class Checkpoint:
    """A checkpoint with our names of weights and settings."""

    file: WeightFile
    network: str  # FoundationStereo or FastFoundationStereo
    state: dict[str, Tensor]
    names: str  # names in the file: nvlabs or tao
    found: dict[str, Any]  # settings that the weights' keys and shapes fix
    stored: dict[str, Any]  # settings stored beside the weights

    @property
    def settings(self) -> dict[str, Any]:
        return self.stored | self.found


def load_model(path: str | Path, **overrides: Any) -> StereoNetwork:
    """The network of a checkpoint, in float32, with its weights.

    Encoder, variant and lookup sizes, and FastFoundationStereo's topology and widths, come from the keys and shapes.
    Preset, max_disparity, attention and iterations come from the settings that our trainer stores in the file, or from
    `cfg.yaml` beside it, else they take the published values. A log line reports max_disparity and where it comes
    from; it is a warning if the value is only assumed, or not the one that the weights were trained for.

    Args:
        path: as for `read_weights`: a file of any layout, "starter", or a training folder with a choice.
        overrides: settings as in `create_model`; they win, but must not contradict the weights. `model_type`: the
            expected network.

    Raises:
        ModelError: the checkpoint cannot be used, has another network, or contradicts the settings.
    """
    checkpoint = read_checkpoint(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    requested = given.pop("model_type", checkpoint.network)
    if requested.lower() != checkpoint.network.lower():
        raise ModelError(_contradiction(path, "model_type", requested, checkpoint.network))
    with torch.device("meta"):
        model = _make_network(checkpoint, given)
    quantization = read_quantization(checkpoint.file.extra, path)
    state = checkpoint.state if quantization is None else dequantized(checkpoint.state, quantization, path)
    load_state(model, state, path, "the file is incomplete or belongs to another network")
    if quantization is not None:
        round_activations(model, quantization, formats_of(checkpoint.state))
    values = {given.get("max_disparity"), _trained_for(checkpoint)} - {None}
    level = logging.INFO if len(values) == 1 else logging.WARNING
    LOG.log(level, "%s: the network's max_disparity is %d px, %s", path, *_range(checkpoint, given))
    return model


def _make_network(checkpoint: Checkpoint, given: dict[str, Any]) -> nn.Module:
    path, found = checkpoint.file.path, checkpoint.found
    if checkpoint.network == "FastFoundationStereo":
        return FastFoundationStereo(fast.config_of(found, checkpoint.stored, given, path))
    widths = {key for key, value in given.pop("widths", {}).items() if value is not None}
    for key in sorted(widths | ({"gwc_feature_normalize"} & given.keys())):
        LOG.warning("model.%s has no effect: it is for FastFoundationStereo, but %s holds FoundationStereo", key, path)
    given.pop("gwc_feature_normalize", None)
    for key, value in found.items():
        if key in given and given[key] != value:
            raise ModelError(_contradiction(path, key, given[key], value))
    return FoundationStereo(make_config(**checkpoint.stored | given | found))


def save_checkpoint(
    model: nn.Module, path: str | Path, layout: str = "nvlabs", *, epoch: int = 0, global_step: int = 0
) -> None:
    """Write the weights; the file is replaced atomically.

    Layout nvlabs: {"model": ...} with NVlabs' names. Layout tao: a Lightning dict with TAO's names, prefixed "model.".
    Both store the settings. Only the file's layout changes, not the network's variant.
    """
    settings = settings_of(model.config)
    _write(path, model.state_dict(), layout, settings, epoch, global_step)


def convert_checkpoint(source: str | Path, target: str | Path, to: str) -> None:
    """Write a checkpoint in another layout with bit-identical tensors; see `save_checkpoint` for the layouts.

    Epoch, step and settings are kept; optimizer states are not.

    Raises:
        ModelError: the source is no checkpoint of these networks, the target is the source, `to` is unknown, or this
            network has no such layout.
    """
    source = weights_file(source)
    if Path(target).exists() and Path(target).samefile(source):
        raise ModelError(
            f"{target}: the target is the source, whose training state would be lost; choose another target"
        )
    checkpoint = read_checkpoint(source)
    if read_quantization(checkpoint.file.extra, source):
        raise ModelError(f"{source}: a quantised checkpoint cannot be converted; convert the one it was made from")
    variant = checkpoint.found.get("variant", to)
    if variant != to:
        LOG.warning("%s: the network has variant %s; changing the layout to %s does not make it run in %s's code",
                    source, variant, to, "TAO" if to == "tao" else "NVlabs")  # fmt: skip
    extra = checkpoint.file.extra
    epoch, step = (int(extra.get(key, 0)) for key in ("epoch", "global_step"))
    _write(target, checkpoint.state, to, checkpoint.settings, epoch, step)


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a weight file without building a network.

    `network` is FoundationStereo, FastFoundationStereo, DepthAnythingV2 or EdgeNeXt. `disparity_attention` and
    `max_disparity` are what `load_model` would choose; `max_disparity_from` names the source of the value.

    Raises:
        ModelError: no usable weight file.
    """
    file = read_weights(path)
    known: dict[str, Any] = {"layout": file.layout, "prefix": file.prefix, "network": network_of(file)}
    tensors = {"tensors": len(file.state), "parameters": _parameters(file.state)}
    tensors["dtypes"] = sorted({str(t.dtype).removeprefix("torch.") for t in file.state.values()})
    if known["network"] in ("FoundationStereo", "FastFoundationStereo"):
        checkpoint = _recognise(file)
        known |= {"names": checkpoint.names} | checkpoint.settings
        if known["network"] == "FoundationStereo" and not known.get("disparity_attention"):
            known["disparity_attention"] = _usual_attention(known["variant"])
        known["max_disparity"], known["max_disparity_from"] = _range(checkpoint, {})
    elif known["network"] == "DepthAnythingV2":
        known["encoder"] = encoder_of(file.state[POSITIONS].shape[-1], path)
    if quantization := read_quantization(file.extra, path):
        known |= {"quantization": quantization.backend, "quantized_layers": len(quantization.weight_scales)}
    stages = {key: file.extra[key] for key in ("epoch", "global_step") if key in file.extra}
    return known | tensors | stages


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any layout; its tensors stay as they are in the file.

    Raises:
        ModelError: the file cannot be used, or holds neither network.
    """
    return _recognise(read_weights(path))


def _recognise(file: WeightFile) -> Checkpoint:
    network = network_of(file)
    if network in PARTS:
        raise ModelError(f"{file.path}: {PARTS[network]}")
    tao = any(key.startswith(("feature.downsample_layers.", "cost_agg.atts.cost_vol_disp.")) for key in file.state)
    state = {from_tao(key): value for key, value in file.state.items()} if tao else dict(file.state)
    names = "tao" if tao else "nvlabs"
    if network == "FastFoundationStereo":
        found, stored = fast.fixed_by_weights(state, file.path), _stored_settings(file, fast.SETTINGS)
        return Checkpoint(file, network, fast.complete(state), names, found, stored)
    _complete_aliases(state)
    found, stored = _fixed_by_weights(state, file.path), _stored_settings(file, SETTINGS)
    if found["encoder"] == "vitt":
        preset = stored.pop("preset", None)
        (found if preset else stored)["preset"] = preset or _likely_preset(stored, file.path)
    return Checkpoint(file, network, state, names, found, stored)


def _complete_aliases(state: dict[str, Tensor]) -> None:
    """The context network's norm3 is also downsample.1; safetensors keeps one of the two names."""
    for key in [k for k in state if k.startswith("cnet.")]:
        for one, other in ((".norm3.", ".downsample.1."), (".downsample.1.", ".norm3.")):
            if one in key:
                state.setdefault(key.replace(one, other), state[key])


# Recognition

PARTS = {
    "DepthAnythingV2": "the file holds only the ViT branch (Depth Anything V2); name it in "
    "model.stereo_backbone.depth_anything_v2_pretrained_path",
    "EdgeNeXt": "the file holds only an EdgeNeXt; name it in model.stereo_backbone.edgenext_pretrained_path",
}


def network_of(file: WeightFile) -> str:
    """The network or backbone whose keys a file has; ModelError for any other file."""
    state = file.state
    if any(key.startswith("cnet.conv04.") for key in state):
        return "FastFoundationStereo"
    if any(key.startswith("cost_agg.") for key in state) and DINO + POSITIONS in state:
        return "FoundationStereo"
    if POSITIONS in state and any(key.startswith("depth_head.") for key in state):
        return "DepthAnythingV2"
    if any(key.startswith(("stem.0.", "downsample_layers.0.")) for key in state):
        return "EdgeNeXt"
    raise ModelError(
        f"{file.path}: not a checkpoint of FoundationStereo or FastFoundationStereo; its first weights are "
        f"{first_names(state)}"
    )


def _fixed_by_weights(state: dict[str, Tensor], path: str | Path) -> dict[str, Any]:
    encoder = encoder_of(state[DINO + POSITIONS].shape[-1], path)
    found = {
        "encoder": encoder,
        "variant": "nvlabs" if "corr_stem.1.bn.weight" in state else "tao",
        "n_gru_layers": sum(f"update_block.gru{scale}.conv0.0.weight" in state for scale in ("04", "08", "16")),
    }
    if encoder != "vitt":  # only the stored settings distinguish the presets
        found["preset"] = None
    lookup, patch = (state.get(key) for key in ("update_block.encoder.convc1.weight", "cost_agg.conv_patch.1.weight"))
    if lookup is not None and patch is not None:
        found |= _lookup_sizes(lookup.shape[1], patch.shape[0] + 1)
    return found


def _likely_preset(stored: dict[str, Any], path: str | Path) -> str:
    """The presets share all shapes: choose the one with the stored max_disparity, else tiny."""
    ranges = {PRESET_SETTINGS[name]["max_disparity"]: name for name in PRESETS}
    preset = ranges.get(stored.get("max_disparity"), "tiny")
    LOG.info("%s: the shapes fit the presets %s; using %s (set model.preset to choose another)",
             path, " and ".join(PRESETS), preset)  # fmt: skip
    return preset


def _lookup_sizes(width: int, channels: int) -> dict[str, Any]:
    """Levels and radius of a lookup of levels * channels * (2 radius + 1) values."""
    for levels in (1, 2):
        taps = width // (levels * channels)
        if taps * levels * channels == width and taps % 2:
            return {"corr_levels": levels, "corr_radius": taps // 2}
    return {}


def encoder_of(dim: int, path: str | Path) -> str:
    """The encoder's name for a ViT of this width; ModelError if there is none."""
    for name, widths in VIT.items():
        if widths.dim == dim:
            return name
    raise ModelError(
        f"{path}: the ViT has width {dim}; known widths are {', '.join(f'{n} {w.dim}' for n, w in VIT.items())}"
    )


def _usual_attention(variant: str) -> str:
    return make_config(variant=variant).disparity_attention


def _stored_settings(file: WeightFile, names: tuple[str, ...]) -> dict[str, Any]:
    """The settings `names` that our trainer or a pickled module stored in the file, else those of cfg.yaml beside
    it."""
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
        raise ModelError(f"{path}: the checkpoint's settings cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path}: the checkpoint's settings are not `key: value` lines; correct the file")
    return config


_ASSUMED = "the file does not store the value that its weights were trained for; if it differs, set model.max_disparity"


def _range(checkpoint: Checkpoint, given: dict[str, Any]) -> tuple[int, str]:
    """The network's max_disparity in px, and where it comes from.

    No shape depends on it: with a wrong value the network runs, but its disparities are wrong.
    """
    if asked := given.get("max_disparity"):
        trained = _trained_for(checkpoint)
        other = (
            f", but the weights were trained for {trained} px, so disparities may be biased; leave it out, or train on"
        )
        return asked, "from model.max_disparity" + other * (trained not in (None, asked))
    if stored := checkpoint.stored.get("max_disparity"):
        return stored, "stored with the weights"
    if checkpoint.network == "FastFoundationStereo":
        return fast.PUBLISHED_RANGE, "the published value"
    preset = (checkpoint.stored | given | checkpoint.found).get("preset")
    usual = f"the {preset} preset's value" if preset else "the published value"
    return PRESET_SETTINGS[preset]["max_disparity"], f"{usual}: {_ASSUMED}"


def _trained_for(checkpoint: Checkpoint) -> int | None:
    """The max_disparity that the weights were trained for, in px; None if the file does not say so, except for
    FastFoundationStereo, which is published with one value only."""
    if checkpoint.network == "FastFoundationStereo":
        return fast.trained_for(checkpoint.stored)
    stored: int | None = checkpoint.stored.get("max_disparity")
    return stored


def _contradiction(path: str | Path, key: str, given: Any, found: Any) -> str:
    mend = f"remove model.{key} from the spec: the checkpoint decides"
    return f"{path}: the file holds a network with {key} {found}, not {given}; {mend}"


def _parameters(state: dict[str, Tensor]) -> int:
    """The number of parameters, trained or frozen, without statistics and aliases."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    aliases = {key for key in state if key.replace(".downsample.1.", ".norm3.") != key
               and key.replace(".downsample.1.", ".norm3.") in state}  # fmt: skip
    return sum(t.numel() for key, t in state.items() if not key.endswith(buffers) and key not in aliases)


# Reading and writing


def load_state(module: nn.Module, state: dict[str, Tensor], path: str | Path, mend: str) -> None:
    """Load every tensor; ModelError if one is missing, unexpected or of another shape."""
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
        raise ModelError(f"checkpoint layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if Path(path).is_dir():
        raise ModelError(f"{path}: is a folder; name a file in it")
    if Path(path).suffix.lower() == ".safetensors":
        raise ModelError(f"{path}: only PyTorch's format can be written; name it {Path(path).with_suffix('.pth').name}")
    if layout == "tao" and "cnet.conv04.0.weight" in state:
        raise ModelError(f"{path}: TAO does not support the un-pruned FastFoundationStereo; use layout nvlabs")
    common = {"epoch": epoch, "global_step": step, "hyper_parameters": {"model": settings}}
    state = {key: value.detach().cpu() for key, value in state.items()}
    if layout == "nvlabs":
        content = {"model": state} | common
    else:
        version = importlib.metadata.version("pytorch-lightning")
        named = {f"model.{to_tao(key)}": value for key, value in state.items()}
        content = {"state_dict": named, "pytorch-lightning_version": version} | common
    with atomic_path(path) as temporary:
        write_torch(content, temporary)
