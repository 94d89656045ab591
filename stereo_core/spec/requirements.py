"""Checks beyond types and ranges: keys that must be set, files that must exist, keys that must agree."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from stereo_core.spec import choice, path_rules, search_space
from stereo_core.spec.convert import ConvertSpec, FetchSpec, InfoSpec
from stereo_core.spec.dataset import Augmentation, Dataset, DataSource, Split
from stereo_core.spec.experiment import ExperimentSpec, output_file
from stereo_core.spec.fields import Section, marks_of
from stereo_core.spec.model import Model
from stereo_core.spec.path_rules import NEEDED, Complaint
from stereo_core.spec.predict import BESIDE
from stereo_core.spec.train import AUTO, Train
from stereo_core.storage import is_uri
from stereo_core.verbs import VERBS, required, section_of

LOG = logging.getLogger(__name__)

# quantize.backend -> quantize.mode; and the values of quantize.algorithm that the library has for int8 and fp8
_QUANTIZE_MODES: dict[str, Literal["static_ptq", "weight_only_ptq"]] = {
    "torchao": "weight_only_ptq",
    "modelopt.pytorch": "static_ptq",
    "modelopt.onnx": "static_ptq",
}
# section -> its keys that name a checkpoint
_CHECKPOINTS = {"train": ("pretrained_model_path", "resume_training_checkpoint_path"), "quantize": ("model_path",)}
_CHECKPOINTS |= dict.fromkeys(("evaluate", "inference", "export"), ("checkpoint",))
_CALIBRATIONS = ("minmax", "max", "entropy")


def check(verb: str, spec: Section) -> list[Complaint]:
    """All problems that stop a verb from running on this spec."""
    needed = f"is required by {verb}"
    return [(path, needed if rule == NEEDED else rule) for path, rule in _complaints(verb, spec)]


def _complaints(verb: str, spec: Section) -> list[Complaint]:
    if not isinstance(spec, ExperimentSpec):
        return [*_mandatory(spec), *_RULES.get(verb, _none)(spec, verb)]
    name, reads = section_of(verb), VERBS[verb].sections
    own = getattr(spec, name)
    somewhere = own.results_dir or spec.results_dir or output_file(spec, verb)
    complaints = [] if somewhere else [("results_dir", f"is required by {verb} (or set {name}.results_dir)")]
    complaints += _RULES.get(name, _none)(spec, verb)
    if "model" in reads and not getattr(own, "trt_engine", ""):
        complaints += _model(spec)
        checkpoints = {getattr(own, key) for key in _CHECKPOINTS.get(name, ())}
        complaints += _backbones(spec, from_checkpoint=bool(checkpoints - {"", AUTO}))
    if "dataset" in reads and spec.dataset.dataset_name != "StereoDataset":
        complaints.append(("dataset.dataset_name", "MonoDataset is not supported: this product is for stereo only"))
    return complaints


def _none(spec: Section, verb: str) -> Iterator[Complaint]:
    yield from ()


def _mandatory(spec: Section) -> Iterator[Complaint]:
    for name, field in type(spec).model_fields.items():
        if marks_of(field).get("mandatory"):
            yield from path_rules.is_set(name, getattr(spec, name))


def _convert(spec: ConvertSpec, verb: str) -> Iterator[Complaint]:
    yield from path_rules.folder("data_root", spec.data_root)


def _fetch_dataset(spec: FetchSpec, verb: str) -> Iterator[Complaint]:
    expected = "s3://bucket/folder" if spec.mode == "copy" else "a folder or s3://bucket/folder"
    if spec.uri and not is_uri(spec.uri) and (spec.mode == "copy" or not os.path.isdir(spec.uri)):
        yield "uri", f"{spec.uri}: expected {expected}"
    if spec.mode != "pack" and "shard_mib" in spec.model_fields_set:
        yield "shard_mib", "has an effect only with mode=pack; leave it out"


def _info(spec: InfoSpec, verb: str) -> Iterator[Complaint]:
    yield from _entries("data_sources", spec.data_sources, needed=True)
    for index, source in enumerate(spec.data_sources):
        if source.drawn:
            yield (
                f"data_sources[{index}].dataset_name",
                "Synthetic: the scenes are endless and have no files; write some with `depth_net synthesize` first",
            )


def decide(verb: str, spec: Section) -> None:
    """TAO's specs may name both a checkpoint and an engine: keep the one that the verb uses, and log it."""
    own = getattr(spec, section_of(verb), None)
    if not getattr(own, "checkpoint", "") or not getattr(own, "trt_engine", ""):
        return
    taken, other = ("trt_engine", "checkpoint") if "engine" in VERBS[verb].inputs else ("checkpoint", "trt_engine")
    name = section_of(verb)
    level = logging.WARNING if taken == "checkpoint" else logging.INFO  # trt_evaluate says by its name what it takes
    LOG.log(level, "%s.%s and %s are both set; %s uses %s (%s)", name, taken, other, verb, taken, getattr(own, taken))
    setattr(own, other, "")


def settle(verb: str, spec: Section) -> None:
    """Set values that follow from others: checkpoint choices become file paths, data_sources without a file are
    dropped, evaluate.resize and quantize.mode get their value, intervals are limited to num_epochs.

    Baseline and focal length at TAO's defaults count as unset: TAO's templates contain them, but no camera has them.
    """
    if not isinstance(spec, ExperimentSpec):
        return
    for name in ("baseline", "focal_x"):
        if getattr(spec.dataset, name) == Dataset.model_fields[name].default:
            spec.dataset.model_fields_set.discard(name)
    for name in ("train", "val", "test", "infer"):
        split: Split = getattr(spec.dataset, f"{name}_dataset")
        split.data_sources = [source for source in split.data_sources if source.data_file or source.drawn]
        for source in split.data_sources:
            source.dataset_name = source.dataset_name or "GenericDataset"
    if "mode" not in spec.quantize.model_fields_set:
        spec.quantize.mode = _QUANTIZE_MODES[spec.quantize.backend]
    if spec.evaluate.resize is None:
        spec.evaluate.resize = "pad" if spec.evaluate.trt_engine else "none"
    for section in VERBS[verb].sections:
        _settle_checkpoints(section, getattr(spec, section))
    if "train" in VERBS[verb].sections:
        _settle_intervals(spec.train)


def _settle_intervals(train: Train) -> None:
    """Limit intervals to num_epochs: TAO's templates have an interval of ten epochs even for shorter runs."""
    names = ["validation_interval"] + ["checkpoint_interval"] * (train.checkpoint_interval_unit == "epoch")
    for name in names:
        if getattr(train, name) > train.num_epochs:
            LOG.info(
                "train.%s: %d is more than train.num_epochs; using %d", name, getattr(train, name), train.num_epochs
            )
            setattr(train, name, train.num_epochs)


def _settle_checkpoints(name: str, own: Section) -> None:
    for key in _CHECKPOINTS.get(name, ()):
        named = getattr(own, key)
        if named not in ("", AUTO) and not is_uri(named) and (file := choice.chosen(named)) != Path(named):
            LOG.info("%s.%s: %s is the file %s", name, key, named, file)
            setattr(own, key, str(file))


def _train(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    train = spec.train
    for name, needed in required(VERBS[verb].splits).items():
        yield from _sources(spec, name, needed=needed)
        yield from _augmentation(
            f"dataset.{name}_dataset.augmentation", getattr(spec.dataset, f"{name}_dataset").augmentation
        )
    yield from path_rules.checkpoint("train.pretrained_model_path", train.pretrained_model_path)
    if train.resume_training_checkpoint_path != AUTO:
        yield from path_rules.checkpoint("train.resume_training_checkpoint_path", train.resume_training_checkpoint_path)


def _automl(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    own, train = spec.automl, spec.train
    yield from _train(spec, verb)
    if own.automl_policy == "off":
        return
    yield from search_space.complaints(spec)
    if own.direction != "minimize":
        yield "automl.direction", f"{own.metric} is better when lower; set minimize"
    if not spec.dataset.val_dataset.data_sources:
        yield "dataset.val_dataset.data_sources", "a search compares trials on validation pairs; name at least one file"
    if train.validation_interval > own.automl_max_epochs:
        yield (
            "train.validation_interval",
            f"{train.validation_interval} is more than automl.automl_max_epochs {own.automl_max_epochs}; set no more",
        )
    if train.is_dry_run:
        yield "train.is_dry_run", "a search cannot compare dry runs; set false"
    if train.num_nodes > 1:
        yield "train.num_nodes", f"{train.num_nodes}: a search runs on one node, with one GPU for each trial; set 1"


def _predict(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    name = section_of(verb)
    own = getattr(spec, name)
    for split, needed in required(VERBS[verb].splits).items():
        yield from _sources(spec, split, needed=needed)
    if "engine" in VERBS[verb].inputs and not own.trt_engine:
        yield f"{name}.trt_engine", NEEDED
    elif not own.checkpoint and not own.trt_engine:
        yield f"{name}.checkpoint", f"{verb} requires this or {name}.trt_engine"
    yield from path_rules.checkpoint(f"{name}.checkpoint", own.checkpoint)
    yield from path_rules.file(f"{name}.trt_engine", own.trt_engine, needed=False)
    if name == "inference" and own.calibration != BESIDE:
        yield from path_rules.file("inference.calibration", own.calibration, needed=False)


def _export(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    export = spec.export
    yield from path_rules.checkpoint("export.checkpoint", export.checkpoint, needed=True)
    yield from path_rules.is_set("export.onnx_file", export.onnx_file)
    yield from path_rules.no_folder("export.onnx_file", export.onnx_file)
    for path, size in (("export.input_height", export.input_height), ("export.input_width", export.input_width)):
        if size % 32:
            yield path, f"{size} is not a multiple of 32; the next larger one is {-(-size // 32) * 32}"
    if not 16 <= export.opset_version <= 20:
        yield "export.opset_version", f"{export.opset_version} is not one of 16 to 20"
    if export.batch_size == 0:
        yield "export.batch_size", "0 is not possible; give a batch size, or -1 for any"
    if export.input_channel != 3:
        yield "export.input_channel", "the network takes colour images; set 3"
    if export.format != "onnx":
        yield "export.format", "only onnx is supported; set onnx"


def _gen_trt_engine(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    own, settings = spec.gen_trt_engine, spec.gen_trt_engine.tensorrt
    yield from path_rules.file("gen_trt_engine.onnx_file", own.onnx_file)
    yield from path_rules.no_folder("gen_trt_engine.trt_engine", own.trt_engine)
    if not settings.min_batch_size <= settings.opt_batch_size <= settings.max_batch_size:
        sizes = f"{settings.min_batch_size}, {settings.opt_batch_size}, {settings.max_batch_size}"
        yield (
            "gen_trt_engine.tensorrt.opt_batch_size",
            f"min, opt and max batch size must be ascending, but are {sizes}",
        )


def _quantize(spec: ExperimentSpec, verb: str) -> Iterator[Complaint]:
    own, dataset = spec.quantize, spec.dataset
    yield from path_rules.checkpoint("quantize.model_path", own.model_path, needed=True)
    for split in ("train", "val"):
        yield from _sources(spec, split, needed=False)
    if "mode" in own.model_fields_set and own.mode != _QUANTIZE_MODES[own.backend]:
        yield "quantize.mode", f"{own.mode}: {own.backend} supports only {_QUANTIZE_MODES[own.backend]}; set that"
    if own.device == "trt" and own.backend != "modelopt.onnx":
        yield "quantize.device", f"trt works only with modelopt.onnx; set cuda, cuda:N or cpu for {own.backend}"
    if own.max_epe_increase is not None and not dataset.val_dataset.data_sources:
        yield "quantize.max_epe_increase", "needs pairs to measure on; set dataset.val_dataset.data_sources"
    if own.backend == "torchao":
        return
    if own.algorithm not in _CALIBRATIONS:
        yield (
            "quantize.algorithm",
            f"{own.algorithm} is for 4-bit weights; for int8 and fp8 {own.backend} supports {', '.join(_CALIBRATIONS)}",
        )
    images = dataset.quant_calibration_dataset.images_dir
    if images and not is_uri(images) and not os.path.exists(images):
        yield "dataset.quant_calibration_dataset.images_dir", f"no such folder or archive: {images}"
    if not images and not dataset.train_dataset.data_sources:
        yield (
            "dataset.quant_calibration_dataset.images_dir",
            f"{own.backend} needs calibration images; set this, or dataset.train_dataset.data_sources",
        )


_RULES: dict[str, Callable[[Any, str], Iterator[Complaint]]] = {  # each takes the spec of its own verb
    "convert": _convert,
    "fetch_dataset": _fetch_dataset,
    "info": _info,
    "train": _train,
    "automl": _automl,
    "evaluate": _predict,
    "inference": _predict,
    "export": _export,
    "gen_trt_engine": _gen_trt_engine,
    "quantize": _quantize,
}


def _model(spec: ExperimentSpec) -> Iterator[Complaint]:
    """Settings that no published weights use, and networks that are not supported."""
    model = spec.model
    if model.model_type in ("MetricDepthAnything", "RelativeDepthAnything"):
        yield (
            "model.model_type",
            f"{model.model_type} is a monocular network; this product is for stereo only: FoundationStereo, "
            "FastFoundationStereo",
        )
    yield from _fast(model) if model.model_type == "FastFoundationStereo" else _classic(model)
    if model.n_downsample != 2:
        yield "model.n_downsample", "the network works at a quarter of the resolution; set 2"
    if model.cv_group != 8:
        yield "model.cv_group", f"{model.cv_group}: the network has 8 correlation groups; set 8"
    if model.volume_dim not in (28, 32):
        yield "model.volume_dim", f"{model.volume_dim}: the network has 28 cost volume channels; set 28"
    for name in ("use_bn", "use_clstoken"):
        if getattr(model.stereo_backbone, name):
            yield f"model.stereo_backbone.{name}", "no published weights use it; set false"


def _backbones(spec: ExperimentSpec, *, from_checkpoint: bool) -> Iterator[Complaint]:
    """The backbones' weight files. A checkpoint includes these weights, so then the files are not needed."""
    for name in ("depth_anything_v2_pretrained_path", "edgenext_pretrained_path"):
        path, value = f"model.stereo_backbone.{name}", getattr(spec.model.stereo_backbone, name)
        if not from_checkpoint:
            for _, text in path_rules.file(path, value, needed=False):
                yield (
                    path,
                    f"{text}; correct it, or start from a checkpoint that has these weights: "
                    "train.pretrained_model_path=starter, or a file",
                )
        if value and os.path.isfile(value) and not os.path.getsize(value):
            yield path, f"the file is empty: {value}"


def _classic(model: Model) -> Iterator[Complaint]:
    if model.encoder == "vitt" and not model.preset:
        yield (
            "model.encoder",
            "vitt is available only in presets; set model.preset to small or tiny, or remove model.encoder if there is "
            "a checkpoint: it decides",
        )
    if model.preset and model.encoder != "vitt":
        yield (
            "model.encoder",
            f"the preset {model.preset} uses its own ViT, vitt, not {model.encoder}; remove model.encoder from the "
            "spec",
        )
    if any(width != 128 for width in model.hidden_dims) or len(model.hidden_dims) < model.n_gru_layers:
        yield "model.hidden_dims", f"{model.hidden_dims}: every GRU level of the network has a width of 128"


def _fast(model: Model) -> Iterator[Complaint]:
    if model.preset:  # it sets the encoder
        yield (
            "model.preset",
            f"{model.preset} is for FoundationStereo; FastFoundationStereo has no preset, so remove it",
        )
    elif model.encoder not in ("vits", "vitb", "vitl"):
        yield "model.encoder", f"{model.encoder}: FastFoundationStereo supports vits, vitb or vitl"
    for name in ("variant", "disparity_attention"):
        if getattr(model, name) != "auto":
            yield f"model.{name}", "FastFoundationStereo has only one variant; leave it out"
    if len(model.hidden_dims) < model.n_gru_layers:
        yield (
            "model.hidden_dims",
            f"{model.hidden_dims}: give one width for each GRU level; model.n_gru_layers is {model.n_gru_layers}",
        )


def _augmentation(path: str, augmentation: Augmentation) -> Iterator[Complaint]:
    ranges = {
        "min_scale": [augmentation.min_scale, augmentation.max_scale],
        "color_aug_saturation": augmentation.color_aug_saturation,
        "color_aug_hue_range": augmentation.color_aug_hue_range,
        "gamma": augmentation.gamma[:2],
    }
    for name, (low, high) in ranges.items():
        if low > high:
            yield f"{path}.{name}", f"the lower bound {low} is above the upper bound {high}"
    low_gain, high_gain = augmentation.gamma[2:]
    if low_gain > high_gain:
        yield f"{path}.gamma", f"the lower bound of the gain, {low_gain}, is above the upper bound {high_gain}"
    for name in ("color_aug_saturation", "gamma"):
        if min(getattr(augmentation, name)) < 0:
            yield f"{path}.{name}", f"{min(getattr(augmentation, name))} is below 0"


def _sources(spec: ExperimentSpec, split: str, *, needed: bool) -> Iterator[Complaint]:
    sources = getattr(spec.dataset, f"{split}_dataset").data_sources
    yield from _entries(f"dataset.{split}_dataset.data_sources", sources, needed=needed)


def _entries(path: str, sources: list[DataSource], *, needed: bool) -> Iterator[Complaint]:
    if needed and not sources:
        yield path, "at least one entry with a data_file is required"
    for index, source in enumerate(sources):
        if source.drawn:
            yield from _scenes(f"{path}[{index}]", source)
            continue
        yield from path_rules.file(f"{path}[{index}].data_file", source.data_file, needed=needed)
        if source.data_root:
            yield from path_rules.folder(f"{path}[{index}].data_root", source.data_root)


def _scenes(path: str, source: DataSource) -> Iterator[Complaint]:
    if source.data_file:
        yield f"{path}.data_file", "a Synthetic source has no file; leave it out"
    low, high = source.scene_disparity
    if not 0 < low <= high:
        yield f"{path}.scene_disparity", f"[{low}, {high}] is not an ascending range above 0 px"
