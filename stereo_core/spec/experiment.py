"""ExperimentSpec, the common spec of most verbs; and functions that find a verb's spec class and results folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from stereo_core.errors import SpecError
from stereo_core.spec.automl import AutoML
from stereo_core.spec.dataset import Dataset
from stereo_core.spec.deploy import Export, GenTrtEngine
from stereo_core.spec.fields import Section, Text, key, section
from stereo_core.spec.model import Model
from stereo_core.spec.predict import Evaluate, Inference
from stereo_core.spec.quantize import Quantize
from stereo_core.spec.train import Train, Wandb
from stereo_core.values import near
from stereo_core.verbs import VERBS, section_of


class ExperimentSpec(Section):
    """One file can serve all verbs: each verb reads its own section, `dataset` and `model`."""

    results_dir: Text = key("", "Output folder; each verb writes to its own subfolder")
    encryption_key: Text = key("", "Passphrase of encrypted checkpoints", secret=True)
    model_name: Text = key("", "Name for TAO's launcher")
    dataset: Dataset = section(Dataset, "The pairs, and how they are read and augmented")
    model: Model = section(Model, "The network")
    train: Train = section(Train, "Training")
    automl: AutoML = section(AutoML, "Hyperparameter search")
    evaluate: Evaluate = section(Evaluate, "Metrics of a checkpoint or an engine")
    inference: Inference = section(Inference, "Disparity maps from a checkpoint or an engine")
    export: Export = section(Export, "Checkpoint to ONNX")
    gen_trt_engine: GenTrtEngine = section(GenTrtEngine, "ONNX to engine")
    quantize: Quantize = section(Quantize, "Post-training quantisation")
    wandb: Wandb = section(Wandb, "Weights & Biases")


def sections_of(verb: str) -> set[str]:
    """The top-level keys of ExperimentSpec that a verb may use; empty for a verb with a flat spec."""
    sections = VERBS[verb].sections
    return {"results_dir", "encryption_key", "model_name", "dataset", "model", *sections} if sections else set()


def spec_class(verb: str) -> type[Section]:
    """The class of a verb's spec.

    Raises:
        SpecError: unknown verb, or a verb without a spec; suggests the nearest verb with one.
    """
    if (row := VERBS.get(verb)) and row.spec:
        module, _, name = row.spec.partition(":")
        group: type[Section] = getattr(importlib.import_module(module), name)
        return group
    guess = None if row else near(verb, [name for name in VERBS if VERBS[name].spec])
    wrong = "takes no spec" if row else "unknown verb"
    raise SpecError(f"{verb}: {wrong}" + (f"; did you mean {guess}?" if guess else ""))


def output_file(spec: ExperimentSpec, verb: str) -> str:
    """The output file that the spec names for a verb; empty if there is none."""
    section, _, name = VERBS[verb].output_file.partition(".")
    return str(getattr(getattr(spec, section), name)) if name else ""


def results_dir(spec: Section, verb: str) -> Path:
    """The folder that a verb writes to: `<verb>.results_dir` unchanged, else `results_dir/<verb>`, else the folder of
    its output file (`export.onnx_file`, `gen_trt_engine.trt_engine`). For a flat spec: its `results_dir`.

    doctor writes to `doctor` in the folder of train; with an engine, evaluate and inference write to `trt_evaluate` and
    `trt_inference`. The folder is not created.
    """
    if not isinstance(spec, ExperimentSpec):
        flat: Any = spec  # each flat spec declares the key for itself
        return Path(flat.results_dir)
    if verb == "doctor":
        return results_dir(spec, "train") / "doctor"
    name = section_of(verb)
    own = getattr(spec, name)
    if own.results_dir:
        return Path(own.results_dir)
    if not spec.results_dir and (file := output_file(spec, verb)):
        return Path(file).parent
    with_engine = name in ("evaluate", "inference") and own.trt_engine
    return Path(spec.results_dir) / (f"trt_{name}" if with_engine else name)
