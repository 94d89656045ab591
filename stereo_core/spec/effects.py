"""The list of keys that are accepted but have no effect, with the reasons.

Every key must either be read by the code or be listed here, so that none is ignored silently. The test
tests/spec/test_effects.py checks this.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from stereo_core.spec.convert import SynthesizeSpec
from stereo_core.spec.dataset import Augmentation
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.fields import Section
from stereo_core.spec.model import FAST_KEYS, Model
from stereo_core.spec.paths import dotted, group_of
from stereo_core.spec.train import AUTO, MULTI_STEP, Train
from stereo_core.verbs import VERBS, reads_split, section_of

_MONO = "it is for monocular depth; this product is for stereo"
_FAST = "it is for FastFoundationStereo (model.model_type)"
_NO_LAYER = "no layer of the network uses it"
_NO_VIT = "FastFoundationStereo has no ViT"
_WHOLE = "this split uses whole images, without augmentation"
_TILES = "training and validation do not use tiles"

_AUGMENTATIONS = [name for name in Augmentation.model_fields if name not in ("crop_size", "input_mean", "input_std")]

WITHOUT_EFFECT: dict[str, str] = {
    "encryption_key": "checkpoints are neither encrypted nor decrypted",
    "model_name": "only TAO's launcher reads it",
    "nocc_mask_dir_name": "nocc_dir_pattern locates the masks",
    "dataset.normalize_depth": _MONO,
    "dataset.max_depth": _MONO,
    "dataset.min_depth": _MONO,
    "dataset.*_dataset.augmentation.input_mean": "the network always normalises with ImageNet's mean",
    "dataset.*_dataset.augmentation.input_std": "the network always normalises with ImageNet's standard deviation",
    "dataset.val_dataset.augmentation.crop_size": _WHOLE,
    **{
        f"dataset.{split}_dataset.augmentation.{name}": _WHOLE
        for split in ("val", "test", "infer")
        for name in _AUGMENTATIONS
    },
    "model.mono_backbone.*": _MONO,
    "model.low_memory": "the lookup that TAO splits with it is not what needs the most memory; use smaller batches or "
    "inference.tile",
    "model.disp_head_input_dim": "gru_hidden sets it",
    "model.classifier_mid": _NO_LAYER,
    "model.cost_agg_conv_patch_padding": _NO_LAYER,
    "automl.epoch_multiplier": "budgets are counted in epochs: 1, automl_reduction_factor, its square, ...",
    "automl.automl_population_size": "pbt and dehb are not available here",
    "automl.automl_max_experiments": "automl_max_recommendations sets the number of trials",
    "automl.override_automl_disabled_params": "keys that are not hyperparameters are always refused",
    "automl.train_sample_count": "trials train on all pairs of dataset.train_dataset",
    "train.checkpoint_interval_steps": "use checkpoint_interval with checkpoint_interval_unit: step",
    "train.optim.monitor_name": "no schedule here depends on a metric",
    "train.inference_tile": _TILES,
    "train.tile_wtype": _TILES,
    "train.tile_min_overlap": _TILES,
    "evaluate.batch_size": "use dataset.test_dataset.batch_size",
    "evaluate.input_*": "images keep their size, or get the engine's; see evaluate.resize",
    "evaluate.native_padded": "images of any size are padded to multiples of 32",
    "inference.num_*": "one device is used, the first of inference.gpu_ids",
    "inference.batch_size": "use dataset.infer_dataset.batch_size",
    "inference.input_*": "images keep their size, or get the engine's",
    "inference.conf_threshold": "the network predicts no confidence",
    "gen_trt_engine.batch_size": "use tensorrt.min_batch_size, opt_batch_size and max_batch_size",
    "quantize.layers*.observer_or_fake_quant*": "the library's default observers are used",
    "quantize.layers*.quant_axis": "weights always have one scale per output channel, activations one per tensor",
}
"""Pattern of dotted paths -> reason. The first match counts."""


def reason(path: str) -> str | None:
    """Why a key has no effect; None if it has one."""
    return next((why for pattern, why in WITHOUT_EFFECT.items() if fnmatchcase(path, pattern)), None)


def without_effect(verb: str, spec: Section) -> Iterator[tuple[str, str]]:
    """The keys that the user changed from their default although they have no effect for this verb, with the reason."""
    for path in _changed(spec, ()):
        why = reason(path) if _concerns(verb, path) else None
        if why:
            yield path, why
    if isinstance(spec, SynthesizeSpec) and spec.style == "planes" and spec.appearance:
        yield "appearance", "only scenes of style=rich are seen by two cameras that differ"
    if isinstance(spec, ExperimentSpec):
        yield from _crop_sizes(verb, spec)
        yield from _engines(verb, spec)
        if "model" in VERBS[verb].sections:
            yield from _networks(spec.model, built=section_of(verb) in ("train", "automl") and not _begun(spec.train))
        if verb == "train":
            yield from _optim(spec)
        if verb == "quantize":
            yield from _quantize(spec)
        if verb == "automl":
            yield from _automl(spec)
        if spec.dataset.on_error == "skip" and section_of(verb) in ("evaluate", "inference"):
            yield "dataset.on_error", "only training can skip a pair; this verb fails at an unreadable pair"


def _begun(train: Train) -> bool:
    """Whether training starts from a checkpoint, which then decides which network it is."""
    return bool(train.pretrained_model_path) or train.resume_training_checkpoint_path not in ("", AUTO)


def _networks(model: Model, built: bool) -> Iterator[tuple[str, str]]:
    """The keys of the network that `model_type` does not select.

    Args:
        built: whether `model_type` selects the network; otherwise `load_model` warns of FastFoundationStereo's keys.
    """
    fast = model.model_type == "FastFoundationStereo"
    for path in _changed(model, ("model",)):
        if fast and path in _VIT_KEYS:
            yield path, _NO_VIT
        elif built and not fast and not reason(path) and path.removeprefix("model.") in FAST_KEYS:
            yield path, _FAST


_VIT_KEYS = [
    f"model.stereo_backbone.{key}"
    for key in ("depth_anything_v2_pretrained_path", "allow_random_backbone", "train_vit")
]


def _crop_sizes(verb: str, spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The crop sizes that count only if images are resized."""
    why = "images keep their size"
    split = {"evaluate": "test", "inference": "infer"}.get(verb)
    if split is None or getattr(spec, verb).trt_engine or (verb == "inference" and spec.inference.tile):
        return
    path = f"dataset.{split}_dataset.augmentation.crop_size"
    if path in _changed(spec, ()) and (verb == "inference" or spec.evaluate.resize == "none"):
        yield path, why + ("" if verb == "inference" else "; set evaluate.resize to pad or stretch to use it")


def _engines(verb: str, spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The keys that count for a checkpoint only."""
    name = section_of(verb)
    if name not in ("evaluate", "inference") or not getattr(spec, name).trt_engine:
        return
    reasons = {"precision": "an engine keeps the precision that it was built with", "compile": "an engine is compiled"}
    changed = set(_changed(getattr(spec, name), ()))
    yield from ((f"{name}.{key}", why) for key, why in reasons.items() if key in changed)


_SCHEDULES = {
    "lr_steps": MULTI_STEP,
    "lr_decay": (*MULTI_STEP, "StepLR"),
    "lr_step_size": ("StepLR",),
    "min_lr": ("CosineAnnealingLR",),
}
"""Key of train.optim -> the schedules that use it."""


def _optim(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The keys that only some optimizers and schedules use."""
    optim, changed = spec.train.optim, set(_changed(spec.train.optim, ()))
    if optim.optimizer == "AdamW" and "momentum" in changed:
        yield "train.optim.momentum", "AdamW has no momentum"
    elif "momentum" in changed and optim.lr_scheduler == "OneCycleLR":
        yield "train.optim.momentum", "OneCycleLR varies it between 0.85 and 0.95"
    for name, schedules in _SCHEDULES.items():
        if name in changed and optim.lr_scheduler not in schedules:
            yield f"train.optim.{name}", f"{optim.lr_scheduler} does not use it"
    if "warmup_steps" in changed and optim.lr_scheduler == "OneCycleLR":
        yield "train.optim.warmup_steps", "OneCycleLR has its own warm-up"


def _quantize(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The keys that only some of quantize's backends use."""
    own = spec.quantize
    if own.backend_kwargs and own.backend != "modelopt.onnx":
        yield "quantize.backend_kwargs", f"{own.backend} takes no further arguments here"
    if own.backend != "torchao":
        return
    if own.algorithm not in ("minmax", "max"):
        yield "quantize.algorithm", "torchao does not calibrate"
    for index, rule in enumerate(own.layers):
        if rule.activations.dtype not in ("", "native"):
            yield f"quantize.layers[{index}].activations.dtype", "torchao quantises only weights here"


def _automl(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """The keys that a search, or its algorithm, does not use."""
    own, train, defaults = spec.automl, spec.train, type(spec.train).model_fields
    if own.automl_policy == "off":
        yield from (
            (path, "automl_policy is off") for path in _changed(own, ("automl",)) if path not in _READ_WITHOUT_SEARCH
        )
        return
    if own.algorithm == "bayesian" and own.automl_reduction_factor != 3:
        yield "automl.automl_reduction_factor", "bayesian stops no trial early"
    if train.resume_training_checkpoint_path:
        yield "train.resume_training_checkpoint_path", "each trial resumes from its own checkpoint"
    if train.monitor != defaults["monitor"].default and train.monitor != own.metric:
        yield "train.monitor", "automl.metric replaces it in a search"
    if spec.wandb.run_id:
        yield "wandb.run_id", "each trial is a separate run"
    for path, given in own.custom_param_ranges.items():
        if given.option_weights:
            yield f"automl.custom_param_ranges.{path}.option_weights", "Optuna's samplers support no weights"
        if given.disable_list:
            yield f"automl.custom_param_ranges.{path}.disable_list", "no searched key holds a list"


_READ_WITHOUT_SEARCH = ("automl.automl_policy", "automl.results_dir")


def _concerns(verb: str, path: str) -> bool:
    """Whether a verb reads the section of a key. Keys for other verbs are not a mistake."""
    head, _, rest = path.partition(".")
    if not rest:
        return True
    split, _, key = rest.partition("_dataset.")
    if head == "dataset" and key:
        return reads_split(verb, split)
    return head in VERBS[verb].sections


def _changed(group: Section, path: tuple[Any, ...]) -> Iterator[str]:
    """Dotted paths of all keys that differ from their default."""
    for name, field in type(group).model_fields.items():
        value: Any = getattr(group, name)
        where = (*path, name)
        inner, is_list = group_of(field)
        if inner and is_list:
            for index, entry in enumerate(value):
                yield from _changed(entry, (*where, index))
        elif inner:
            yield from _changed(value, where)
        elif value != field.default:
            yield dotted(where)
