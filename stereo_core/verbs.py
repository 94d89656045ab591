"""The table of verbs: the command line, the specs and the steps all read it.

It holds strings only and imports nothing, so that every package can read it. A new verb needs a row here, a module
with `run(spec, status) -> Outcome`, and a spec: a class of its own or a section of ExperimentSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

EXPERIMENT = "stereo_core.spec.experiment:ExperimentSpec"


@dataclass(frozen=True)
class Verb:
    """Name, inputs and outputs of a verb. A name that ends in "?" is optional.

    Attributes:
        help: what the verb does, for `depth_net VERB --help`.
        example: arguments of an example call, for the same help text.
        action: the module that defines its `run`.
        spec: `module:class` of its spec; empty for a verb that takes none.
        sections: the sections of ExperimentSpec that it reads, its own first.
        splits: each `dataset.<split>_dataset` that it reads -> file names of annotation files. If the spec sets no
            data_sources, a step takes the first of these files that exists. An empty tuple: only the spec decides.
        lists: the same for a flat spec's own `data_sources`, but a step takes every file that exists as one source.
        inputs, outputs: port of its step -> kind of artifact. A verb without outputs is not available as a step.
        one_of: inputs of which at least one is required.
        input_keys: input -> spec key that names its file or folder. A key that ends in "[]" lists several inputs.
        output_file: key of the spec that names the file it writes.
        step_keys: spec key -> the value that a step sets before it sets `input_keys`; {results} is the step's folder.
        parameters: typed parameter of its step -> spec key.
        flat_parameters: its step has one parameter for each spec key, and no `spec` or `spec_file`.
    """

    name: str
    help: str
    example: str
    action: str
    spec: str = EXPERIMENT
    sections: tuple[str, ...] = ()
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    input_keys: Mapping[str, str] = field(default_factory=dict)
    output_file: str = ""
    step_keys: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    flat_parameters: bool = False


_TRAINING = {"train": ("train.txt",), "val?": ("val.txt",)}
_TEST = ("test.txt", "val.txt")
_DATA = {"images": "images", "annotations": "annotations"}
_DATA_OR_SCENES = {f"{port}?": kind for port, kind in _DATA.items()}
_REPORT = {"metrics": "metrics", "report": "report"}

_EVALUATE = Verb(
    name="evaluate",
    help="Measure a checkpoint, or an engine (evaluate.trt_engine), against ground truth.",
    example="-e evaluate.yaml evaluate.checkpoint=results/train@best results_dir=results",
    action="stereo_core.actions.evaluate",
    sections=("evaluate", "dataset", "model"),
    splits={"test": _TEST},
    inputs=_DATA | {"checkpoint?": "checkpoint"},
    outputs=_REPORT,
    input_keys={"checkpoint": "evaluate.checkpoint"},
    step_keys={"evaluate.results_dir": "{results}", "evaluate.trt_engine": ""},
    parameters={"batch_size": "dataset.test_dataset.batch_size"},
)
_INFERENCE = Verb(
    name="inference",
    help="Write disparity maps with a checkpoint, or with an engine (inference.trt_engine).",
    example="-e inference.yaml inference.checkpoint=dn_model_latest.pth inference.save_raw_pfm=true",
    action="stereo_core.actions.inference",
    sections=("inference", "dataset", "model"),
    splits={"infer": _TEST},
    inputs=_DATA | {"checkpoint?": "checkpoint"},
    outputs={"disparity": "disparity", "report": "report"},
    input_keys={"checkpoint": "inference.checkpoint"},
    step_keys={"inference.results_dir": "{results}", "inference.trt_engine": ""},
    parameters={"batch_size": "dataset.infer_dataset.batch_size"},
)
_ROWS = (
    Verb(
        name="convert",
        help="List the stereo pairs of a folder in annotation files (train.txt and val.txt, or test.txt).",
        example="data_root=/data/MiddEval3 results_dir=lists 'image_dir_pattern=[im0]' "
        "'right_dir_pattern=[im1]' 'depth_dir_pattern=[disp0GT]' image_extension=.png depth_extension=.pfm",
        action="stereo_core.actions.convert",
        spec="stereo_core.spec.convert:ConvertSpec",
        inputs={"images": "images"},
        outputs={"annotations": "annotations"},
        input_keys={"images": "data_root"},
        step_keys={"results_dir": "{results}", "relative_paths": "true"},
    ),
    Verb(
        name="synthesize",
        help="Write a small synthetic data set with exact disparity and occlusion masks.",
        example="results_dir=scenes num_scenes=16 seed=7",
        action="stereo_core.actions.synthesize",
        spec="stereo_core.spec.convert:SynthesizeSpec",
        outputs={"images": "images"},
        step_keys={"results_dir": "{results}"},
        flat_parameters=True,
    ),
    Verb(
        name="fetch_dataset",
        help="Fetch a data set from object storage: copy its files, pack them, or only record where they are.",
        example="uri=s3://data/kitti results_dir=kitti",
        action="stereo_core.actions.fetch_dataset",
        spec="stereo_core.spec.convert:FetchSpec",
        outputs={"images": "images"},
        step_keys={"results_dir": "{results}"},
        flat_parameters=True,
    ),
    Verb(
        name="info",
        help="Print statistics of data sets: pairs, image sizes, ground truth, masks, disparities.",
        example="'data_sources=[{data_file: lists/train.txt, dataset_name: Kitti}]' results_dir=info",
        action="stereo_core.actions.info",
        spec="stereo_core.spec.convert:InfoSpec",
        lists=("train.txt", "val.txt", "test.txt"),
        inputs=_DATA,
        outputs={"report": "report"},
        step_keys={"results_dir": "{results}"},
    ),
    Verb(
        name="train",
        help="Train a network, or resume a training run.",
        example="-e train.yaml train.num_epochs=20 train.optim.lr=1e-4",
        action="stereo_core.actions.train",
        sections=("train", "dataset", "model", "wandb"),
        splits=_TRAINING,
        inputs=_DATA_OR_SCENES | {"pretrained?": "checkpoint"},
        outputs={"checkpoint": "checkpoint"} | _REPORT,
        input_keys={"pretrained": "train.pretrained_model_path"},
        step_keys={"train.results_dir": "{results}"},
        parameters={
            "num_epochs": "train.num_epochs",
            "batch_size": "dataset.train_dataset.batch_size",
            "learning_rate": "train.optim.lr",
            "precision": "train.precision",
            "num_gpus": "train.num_gpus",
            "num_nodes": "train.num_nodes",
        },
    ),
    Verb(
        name="automl",
        help="Search hyperparameters with many short training runs; keep the best spec and checkpoint.",
        example="-e train.yaml automl.algorithm=asha automl.automl_max_recommendations=12",
        action="stereo_core.actions.automl",
        sections=("automl", "train", "dataset", "model", "wandb"),
        splits=_TRAINING,
        inputs=_DATA | {"pretrained?": "checkpoint"},
        outputs={"checkpoint": "checkpoint", "best_spec": "spec"} | _REPORT,
        input_keys={"pretrained": "train.pretrained_model_path"},
        step_keys={"automl.results_dir": "{results}"},
        parameters={
            "algorithm": "automl.algorithm",
            "max_recommendations": "automl.automl_max_recommendations",
            "max_epochs": "automl.automl_max_epochs",
        },
    ),
    Verb(
        name="doctor",
        help="Check spec, data, machine and memory before a long training.",
        example="-e train.yaml dataset.train_dataset.batch_size=4",
        action="stereo_core.actions.doctor",
        sections=("train", "dataset", "model", "wandb"),
        splits=_TRAINING,
    ),
    _EVALUATE,
    _INFERENCE,
    replace(
        _EVALUATE,
        name="trt_evaluate",
        help="Measure an engine against ground truth (evaluate that requires an engine).",
        example="-e evaluate.yaml evaluate.trt_engine=model.engine",
        inputs=_DATA | {"engine": "engine"},
        input_keys={"engine": "evaluate.trt_engine"},
        step_keys={"evaluate.results_dir": "{results}", "evaluate.checkpoint": ""},
    ),
    replace(
        _INFERENCE,
        name="trt_inference",
        help="Write disparity maps with an engine (inference that requires an engine).",
        example="-e inference.yaml inference.trt_engine=model.engine",
        inputs=_DATA | {"engine": "engine"},
        input_keys={"engine": "inference.trt_engine"},
        step_keys={"inference.results_dir": "{results}", "inference.checkpoint": ""},
    ),
    Verb(
        name="export",
        help="Export a checkpoint to ONNX.",
        example="-e export.yaml export.checkpoint=dn_model_latest.pth export.onnx_file=model.onnx",
        action="stereo_core.actions.export",
        sections=("export", "dataset", "model"),
        inputs={"checkpoint": "checkpoint"},
        outputs={"onnx": "onnx"},
        input_keys={"checkpoint": "export.checkpoint"},
        output_file="export.onnx_file",
        step_keys={"export.results_dir": "{results}", "export.onnx_file": "{results}/model.onnx"},
        parameters={"input_height": "export.input_height", "input_width": "export.input_width"},
    ),
    Verb(
        name="quantize",
        help="Quantise a checkpoint or an ONNX file to int8 or fp8, and measure the loss of accuracy.",
        example="-e quantize.yaml quantize.model_path=dn_model_latest.pth quantize.backend=torchao results_dir=results",
        action="stereo_core.actions.quantize",
        sections=("quantize", "dataset", "model"),
        splits={
            "train": ("train.txt", "val.txt", "test.txt"),
            "val?": ("val.txt", "test.txt"),
            "quant_calibration": (),
        },
        inputs=_DATA | {"checkpoint?": "checkpoint", "onnx?": "onnx"},
        outputs={"quantized": "quantized"} | _REPORT,
        one_of=("checkpoint", "onnx"),
        input_keys={"checkpoint": "quantize.model_path", "onnx": "quantize.model_path"},
        step_keys={"quantize.results_dir": "{results}"},
        parameters={"backend": "quantize.backend"},
    ),
    Verb(
        name="gen_trt_engine",
        help="Build an engine from an ONNX file.",
        example="-e engine.yaml gen_trt_engine.onnx_file=model.onnx gen_trt_engine.trt_engine=model.engine",
        action="stereo_core.actions.gen_trt_engine",
        sections=("gen_trt_engine",),
        inputs={"onnx": "onnx"},
        outputs={"engine": "engine"},
        input_keys={"onnx": "gen_trt_engine.onnx_file"},
        output_file="gen_trt_engine.trt_engine",
        step_keys={"gen_trt_engine.results_dir": "{results}", "gen_trt_engine.trt_engine": ""},
        parameters={"backend": "gen_trt_engine.backend", "precision": "gen_trt_engine.tensorrt.data_type"},
    ),
    Verb(
        name="report",
        help="Compare several evaluations on one page: accuracy, latency, size.",
        example="results_dir=out 'results=[results/evaluate,results/trt_evaluate]' 'names=[checkpoint,engine]'",
        action="stereo_core.actions.report",
        spec="stereo_core.spec.convert:ReportSpec",
        inputs=dict.fromkeys(("first?", "second?", "third?", "fourth?", "many?"), "metrics"),
        outputs={"report": "report"},
        input_keys=dict.fromkeys(("first", "second", "third", "fourth", "many"), "results[]"),
        step_keys={"results_dir": "{results}"},
        flat_parameters=True,
    ),
    Verb(
        name="publish_model",
        help="Publish a model with its metrics and a model card to a folder or to object storage.",
        example="model_path=model.onnx metrics_path=results/evaluate/results.json uri=s3://models/night "
        "results_dir=out",
        action="stereo_core.actions.publish_model",
        spec="stereo_core.spec.convert:PublishSpec",
        inputs={"model": "model", "metrics?": "metrics"},
        outputs={"card": "card"},
        input_keys={"model": "model_path", "metrics": "metrics_path"},
        step_keys={"results_dir": "{results}", "metrics_path": ""},
        flat_parameters=True,
    ),
    Verb(
        name="final_status",
        help="Write a Markdown summary of a finished pipeline (for its exit handler).",
        example="results_dir=out title=nightly 'status={state: SUCCEEDED}'",
        action="stereo_core.actions.final_status",
        spec="stereo_core.spec.convert:FinalStatusSpec",
        outputs={"summary": "summary"},
        step_keys={"results_dir": "{results}"},
        flat_parameters=True,
    ),
)
VERBS: dict[str, Verb] = {row.name: row for row in _ROWS}


def required(names: Mapping[str, object]) -> dict[str, bool]:
    """Each name without its "?" -> whether it is required."""
    return {name.removesuffix("?"): not name.endswith("?") for name in names}


def steps() -> tuple[str, ...]:
    """The verbs that can run as a step of a pipeline."""
    return tuple(name for name, row in VERBS.items() if row.outputs)


def section_of(verb: str) -> str:
    """The verb's own section of ExperimentSpec; the verb's name if it has a spec class of its own."""
    return (*VERBS[verb].sections, verb)[0]


def reads_split(verb: str, split: str) -> bool:
    """Whether a verb reads `dataset.<split>_dataset`."""
    return split in required(VERBS[verb].splits)
