"""No key is ignored in silence: it is read somewhere, or the table says why it is not."""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import stereo_core
from stereo_core.models.fast_foundation_stereo.config import WIDTH_KEYS
from stereo_core.models.foundation_stereo.config import SETTINGS
from stereo_core.spec import load_spec, spec_class, spec_from_dict
from stereo_core.spec.effects import WITHOUT_EFFECT, reason, without_effect
from stereo_core.spec.paths import group_of, walk
from stereo_core.verbs import VERBS

TEMPLATES = Path(__file__).parent / "tao"
JUDGED_AT_LOADING = {  # read by spec/requirements.py alone: one value only is possible
    "dataset.dataset_name",
    "model.model_type",
    "model.hidden_dims",
    "model.n_downsample",
    "model.cv_group",
    "model.volume_dim",
    "model.stereo_backbone.use_bn",
    "model.stereo_backbone.use_clstoken",
    "export.format",
    "quantize.mode",  # each backend has one
    "export.input_channel",
    "automl.automl_hyperparameters",  # spec/search_space.py makes dimensions of both
    "automl.custom_param_ranges",
}


# of the data source Synthetic, which info refuses
JUDGED_AT_LOADING |= {
    f"info:data_sources[].{name}" for name in ("pairs_per_epoch", "style", "height", "width", "scene_disparity")
}
FLAT = tuple(verb for verb, row in VERBS.items() if row.spec and not row.sections)
READ_AT = """
automl.algorithm: automl/study.py: settings.algorithm == "bayesian"
quantize.algorithm: quantization/modelopt_torch.py: section.algorithm
gen_trt_engine.backend: actions/gen_trt_engine.py: backend=section.backend
quantize.backend: actions/quantize.py: BACKENDS[section.backend]
dataset.*_dataset.batch_size: data/loaders.py: batch_size=section.batch_size
export.batch_size: actions/export.py: section.batch_size
evaluate.checkpoint, inference.checkpoint: actions/predict/predictor.py: from_spec(spec, section.checkpoint)
export.checkpoint: actions/export.py: from_spec(spec, section.checkpoint)
convert:data_root: actions/convert.py: spec.data_root
dataset.*_dataset.data_sources[].data_file: data/datasets.py: source.data_file
dataset.*_dataset.data_sources[].data_root: data/datasets.py: source.data_root
info:data_sources[].data_file: actions/info.py: source.data_file
info:data_sources[].data_root: actions/info.py: source.data_root
dataset.*_dataset.data_sources[].dataset_name: data/datasets.py: source.dataset_name
info:data_sources[].dataset_name: data/datasets.py: source.dataset_name
dataset.*_dataset.data_sources[].disparity_format: data/datasets.py: source.disparity_format
info:data_sources[].disparity_format: data/datasets.py: source.disparity_format
dataset.*_dataset.data_sources[].disparity_scale: data/datasets.py: source.disparity_scale
info:data_sources[].disparity_scale: data/datasets.py: source.disparity_scale
dataset.*_dataset.data_sources[].image_bits: data/datasets.py: source.image_bits
info:data_sources[].image_bits: data/datasets.py: source.image_bits
train.cudnn.deterministic: training/trainer.py: settings.cudnn.deterministic
train.deterministic: training/trainer.py: settings.deterministic
quantize.layers[].activations.dtype, quantize.layers[].weights.dtype: quantization/rules.py: getattr(rule, part).dtype
export.gpu_id: actions/export.py: section.gpu_id
gen_trt_engine.gpu_id: actions/gen_trt_engine.py: gpu_id=section.gpu_id
evaluate.compile, inference.compile: actions/predict/predictor.py: section.compile
train.compile: training/trainer.py: settings.compile
evaluate.gpu_ids, evaluate.num_gpus, evaluate.num_nodes: actions/evaluate.py: resolve(spec.evaluate,
train.gpu_ids, train.num_gpus, train.num_nodes: actions/train.py: resolve(spec.train,
train.gpu_ids, evaluate.gpu_ids: training/distribution.py: section.gpu_ids
train.num_gpus, evaluate.num_gpus: training/distribution.py: section.num_gpus
train.num_nodes, evaluate.num_nodes: training/distribution.py: section.num_nodes
inference.gpu_ids: actions/inference.py: single_gpu(settings, "inference"
export.input_height: actions/export.py: section.input_height
export.input_width: actions/export.py: section.input_width
dataset.max_disparity: training/module.py: spec.dataset.max_disparity
dataset.max_disparity: actions/evaluate.py: spec.dataset.max_disparity
synthesize:max_disparity: actions/synthesize.py: spec.max_disparity
publish_model:max_epe_increase: actions/publish_model.py: spec.max_epe_increase
quantize.max_epe_increase: actions/quantize.py: section.max_epe_increase
evaluate.precision, inference.precision: actions/predict/predictor.py: resolved(section.precision
train.precision: training/trainer.py: settings.precision
fetch_dataset:mode: actions/fetch_dataset.py: spec.mode
publish_model:model_path: actions/publish_model.py: spec.model_path
quantize.model_path: actions/quantize.py: section.model_path
export.onnx_file: actions/export.py: section.onnx_file
gen_trt_engine.onnx_file: actions/gen_trt_engine.py: section.onnx_file
automl.seed: automl/study.py: self.settings.seed + number
convert:seed: actions/convert.py: spec.seed
synthesize:seed: actions/synthesize.py: spec.seed
train.seed: actions/train.py: settings.seed
train.seed: data/datasets.py: seed=spec.train.seed
final_status:title: actions/final_status.py: spec.title
publish_model:title: actions/publish_model.py: spec.title
report:title: actions/report.py: spec.title
evaluate.trt_engine, inference.trt_engine: actions/predict/predictor.py: load_engine(section.trt_engine
dataset.*_dataset.data_sources[].pairs_per_epoch: data/scenes.py: source.pairs_per_epoch
dataset.*_dataset.data_sources[].scene_disparity: data/scenes.py: source.scene_disparity
dataset.*_dataset.data_sources[].style: data/scenes.py: source.style
dataset.*_dataset.data_sources[].height: data/scenes.py: source.height
dataset.*_dataset.data_sources[].width: data/scenes.py: source.width
synthesize:style, synthesize:height, synthesize:width: actions/synthesize.py: spec.style, spec.height, spec.width
gen_trt_engine.trt_engine: actions/gen_trt_engine.py: section.trt_engine
fetch_dataset:uri: actions/fetch_dataset.py: spec.uri
publish_model:uri: actions/publish_model.py: spec.uri
export.valid_iters: actions/export.py: int(section.valid_iters)
export.verbose: actions/export.py: verbose=section.verbose
gen_trt_engine.verbose: actions/gen_trt_engine.py: verbose=section.verbose
"""
"""Keys whose last name others have too: in which file each is read, and by which words."""

ROOT = Path(stereo_core.__file__).parent
CODE = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
OWNERS = "spec|section|settings|own|train|optim|augmentation|source|rule"  # what the code calls a section


def keys(verb: str) -> list[str]:
    return [path for path, field in walk(spec_class(verb)) if group_of(field)[0] is None]


def every_key() -> list[str]:
    """All keys, those of the flat specs as `verb:key`, those of the four splits once."""
    flat = [f"{verb}:{key}" for verb in FLAT for key in keys(verb)]
    splits = [re.sub(r"(?<=dataset\.)[a-z]+(?=_dataset\.)", "*", key) for key in keys("train")]
    return list(dict.fromkeys(splits + flat))


def name_of(key: str) -> str:
    return re.split(r"[.:]", key)[-1]


def has_effect(key: str) -> bool:
    return not reason(key.partition(":")[2] or key.replace("*", "train")) and key not in JUDGED_AT_LOADING


def test_every_pattern_of_the_table_fits_a_key():
    known = {path for verb in ("convert", "synthesize", "train") for path in keys(verb)}
    for pattern in WITHOUT_EFFECT:
        assert any(fnmatchcase(path, pattern) for path in known), pattern


def test_a_key_with_an_effect_is_read_from_its_own_section():
    """One word `.batch_size` somewhere is no proof for five keys of that name."""
    names = Counter(map(name_of, every_key()))
    outside = "\n".join(text for file, text in CODE.items() if not file.startswith("spec/"))
    network = "\n".join(text for file, text in CODE.items() if file.startswith("models/"))
    silent = []
    for key in filter(has_effect, every_key()):
        name, group = name_of(key), re.escape(re.sub(r"[][*]", "", key.rpartition(".")[0].rpartition(".")[2]))
        if key.startswith("model.") and name in SETTINGS:  # taken by name into the network's config
            read = re.search(rf"\b(?:config|section)\.{name}\b", network)
        elif key.startswith("model.") and name in WIDTH_KEYS:  # likewise, into its widths
            read = re.search(rf"\bwidths\.{name}\b", network)
        elif name == "results_dir":  # experiment.results_dir resolves it for all
            read = "own.results_dir" in CODE["spec/experiment.py"]
        elif names[name] == 1:
            read = re.search(rf"\b(?:{OWNERS}|{group or 'spec'})\.{name}\b", outside)
        else:
            read = any(key in row.split(": ")[0].split(", ") for row in READ_AT.strip().splitlines())
        if not read:
            silent.append(key)
    assert not silent


@pytest.mark.parametrize("row", READ_AT.strip().splitlines())
def test_where_a_key_is_read(row):
    found, file, words = row.split(": ", 2)
    assert set(found.split(", ")) <= set(filter(has_effect, every_key()))
    assert words in CODE[file]


def reader(path: str) -> str:
    """A verb that reads the section of a key."""
    head, _, rest = path.partition(".")
    if head == "dataset":
        return {"test_dataset": "evaluate", "infer_dataset": "inference"}.get(rest.partition(".")[0], "train")
    return "train" if head in ("model", "wandb") or not rest else head


@pytest.mark.parametrize("verb", ["convert", "train"])
def test_each_key_without_effect_draws_one_warning_where_it_is_set(verb):
    """TAO's item 17, for every key there is; those at their defaults draw none."""
    vain = [path for path in keys(verb) if reason(path) and "[]." not in path]
    assert len(vain) > (60 if verb == "train" else 0)
    for path in vain:
        read_by = verb if verb == "convert" else reader(path)
        spec = spec_class(verb)(**({"quantize": {"layers": [{}]}} if verb == "train" else {}))
        assert list(without_effect(read_by, spec)) == []
        *groups, name = path.split(".")
        owner = spec
        for group in groups:
            owner = getattr(owner, group)
        owner.__dict__[name] = object()  # whatever it is set to
        assert list(without_effect(read_by, spec)) == [(path, reason(path))]


def idle(verb: str, template: str, *overrides: str) -> list[str]:
    found = without_effect(verb, load_spec(verb, TEMPLATES / f"{template}.yaml", list(overrides)))
    return [f"{path}: {why}" for path, why in found]


def test_one_warning_a_key_and_only_away_from_the_default(workspace):
    overrides = ["train.tile_wtype=box", "evaluate.batch_size=4", "dataset.val_dataset.augmentation.max_scale=0.1"]
    found = idle("train", "train", *overrides)
    assert [line for line in found if line.startswith("train.tile_wtype: ")]
    assert len([line for line in found if "dataset.val_dataset.augmentation.max_scale" in line]) == 1
    assert not [line for line in found if "evaluate" in line or "train.seed" in line or "train_dataset" in line]


def test_training_augments_and_may_skip_pairs_and_evaluation_may_not(workspace):
    path = "dataset.train_dataset.augmentation"
    overrides = [
        f"{path}.do_flip=true",
        f"{path}.max_scale=0.9",
        f"{path}.gamma=[0.8,1.2,1,1]",
        "dataset.on_error=skip",
    ]
    found = idle("train", "train", *overrides)
    assert not [line for line in found if line.startswith(("dataset.train_dataset", "dataset.on_error"))]
    found = idle("evaluate", "evaluate", "dataset.on_error=skip")
    assert [line for line in found if line.startswith("dataset.on_error: only training")]


def test_a_crop_size_that_brings_nothing_to_a_size_is_named(workspace):
    path = "dataset.test_dataset.augmentation.crop_size"
    assert [line for line in idle("evaluate", "evaluate") if line.startswith(path)]
    assert not [line for line in idle("evaluate", "evaluate", "evaluate.resize=pad") if path in line]


def test_an_optimizer_and_a_schedule_take_their_own_keys(workspace):
    set_away = {"momentum": "0.5", "lr_decay": "0.5", "min_lr": "1e-5", "warmup_steps": "3"}
    own = [f"train.optim.{name}={value}" for name, value in set_away.items()]

    def named(*overrides: str) -> set[str]:
        found = idle("train", "train", *own, *overrides)
        return {
            line.partition(":")[0].removeprefix("train.optim.") for line in found if line.startswith("train.optim.")
        }

    assert named("train.optim.lr_scheduler=StepLR") == {"momentum", "min_lr"}
    others = ("train.optim.optimizer=SGD", "train.optim.lr_scheduler=OneCycleLR")
    assert named(*others) == {"momentum", "lr_decay", "min_lr", "warmup_steps"}


def test_tao_s_defaults_draw_no_warning(workspace):
    assert idle("convert", "convert_middlebury") == []
    assert idle("gen_trt_engine", "gen_trt_engine") == []


@pytest.mark.parametrize(("style", "warned"), [("planes", ["appearance"]), ("rich", [])])
def test_the_cameras_of_planes_do_not_differ(style, warned):
    keys = {"results_dir": "data", "style": style, "appearance": 0.5}
    assert [path for path, _ in without_effect("synthesize", spec_from_dict("synthesize", keys))] == warned
