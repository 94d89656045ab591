"""The spec of every verb that has no flat one, and how a verb finds its spec and its results."""

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
    """One file may serve all verbs: each reads its own section, `dataset` and `model`."""

    results_dir: Text = key("", "Output folder; each verb writes to its own folder in it")
    encryption_key: Text = key("", "Passphrase of encrypted checkpoints", secret=True)
    model_name: Text = key("", "Name for TAO's launcher")
    dataset: Dataset = section(Dataset, "Which pairs, and how they are read and augmented")
    model: Model = section(Model, "The network")
    train: Train = section(Train, "Training")
    automl: AutoML = section(AutoML, "The search for hyperparameters")
    evaluate: Evaluate = section(Evaluate, "Metrics of a checkpoint or an engine")
    inference: Inference = section(Inference, "Disparity maps from a checkpoint or an engine")
    export: Export = section(Export, "Checkpoint to ONNX")
    gen_trt_engine: GenTrtEngine = section(GenTrtEngine, "ONNX to engine")
    quantize: Quantize = section(Quantize, "Post-training quantisation")
    wandb: Wandb = section(Wandb, "Weights & Biases")


def sections_of(verb: str) -> set[str]:
    """The first parts of the keys that a verb of the common file may have something to do with; empty for others."""
    sections = VERBS[verb].sections
    return {"results_dir", "encryption_key", "model_name", "dataset", "model", *sections} if sections else set()


def spec_class(verb: str) -> type[Section]:
    """The class of a verb's spec.

    Raises:
        SpecError: no such verb, or one that takes no spec; names the nearest that does.
    """
    if (row := VERBS.get(verb)) and row.spec:
        module, _, name = row.spec.partition(":")
        group: type[Section] = getattr(importlib.import_module(module), name)
        return group
    guess = None if row else near(verb, [name for name in VERBS if VERBS[name].spec])
    wrong = "takes no spec" if row else "unknown verb"
    raise SpecError(f"{verb}: {wrong}" + (f"; did you mean {guess}?" if guess else ""))


def output_file(spec: ExperimentSpec, verb: str) -> str:
    """The file that the user wants a verb to write, else the empty text."""
    section, _, name = VERBS[verb].output_file.partition(".")
    return str(getattr(getattr(spec, section), name)) if name else ""


def results_dir(spec: Section, verb: str) -> Path:
    """Where a verb writes: `<verb>.results_dir` as it is, else `results_dir/<verb>`, else the folder of the file that
    it is told to write (`export.onnx_file`, `gen_trt_engine.trt_engine`); verbs with a flat spec use theirs.

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
