"""The actions behind KFP's executor protocol: `depth_net-launch ACTION EXECUTOR_INPUT_JSON`.

ExecutorInput (JSON) comes in, the action runs, executor_output.json goes out. Standard library only around the action,
so that an image needs no kfp. Kubeflow, Argo and the local engine all start this same command.

Ports: artifacts have standard types; their metadata says what they are (kind, format, sha256) and is checked here
before any work. A Model artifact is a folder that holds the model file under its own name (metadata `file`) and what
lies beside it (an engine's side-car, an ONNX file's external data); a plain file is accepted too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stereo_core import __version__
from stereo_core.actions.fetch_dataset import referred
from stereo_core.errors import DataError, ModelError, SpecError, UserError
from stereo_core.files import atomic_path, sha256_of, size_of
from stereo_core.run.outcome import Outcome
from stereo_core.run.termination import Terminated, explain, sigterm_raises
from stereo_core.storage import is_uri, local_path
from stereo_core.values import with_integers

ACTIONS = (
    "convert",
    "synthesize",
    "fetch_dataset",
    "train",
    "automl",
    "evaluate",
    "inference",
    "export",
    "quantize",
    "gen_trt_engine",
    "trt_evaluate",
    "trt_inference",
    "report",
    "publish_model",
    "final_status",
)

# port -> the kind of artifact it takes or gives; kind -> the formats a consumer here reads
COMPARED = ("first", "second", "third", "fourth")  # the metrics that `report` puts side by side
KINDS = {"pretrained": "checkpoint", "spec_file": "spec", "best_spec": "spec"} | dict.fromkeys(
    (*COMPARED, "many"), "metrics"
)
FORMATS = {"checkpoint": ("pth", "safetensors"), "onnx": ("onnx",), "engine": ("trt", "rtx", "ort")}
FORMATS["quantized"] = ("pth", "onnx")  # of kind checkpoint or onnx, as its metadata say
FORMATS["model"] = ("pth", "safetensors", "onnx", "trt", "rtx", "ort")
MODEL_KINDS = ("checkpoint", "onnx", "engine")  # what the port `model` takes
ENGINE_FORMATS = {"onnxruntime": "ort", "tensorrt": "trt", "tensorrt_rtx": "rtx"}
FOLDER_FORMATS = {"images": "folder", "annotations": "txt", "disparity": "png"}

# action -> input port -> spec key that names the model file
MODEL_KEYS = {
    "train": {"pretrained": "train.pretrained_model_path"},
    "automl": {"pretrained": "train.pretrained_model_path"},
    "evaluate": {"checkpoint": "evaluate.checkpoint"},
    "trt_evaluate": {"engine": "evaluate.trt_engine"},
    "inference": {"checkpoint": "inference.checkpoint"},
    "trt_inference": {"engine": "inference.trt_engine"},
    "export": {"checkpoint": "export.checkpoint"},
    "quantize": {"checkpoint": "quantize.model_path", "onnx": "quantize.model_path"},
    "gen_trt_engine": {"onnx": "gen_trt_engine.onnx_file"},
}
# action -> spec key of the model file it writes, and its name in the results folder ("" leaves it to the backend)
OUTPUT_FILES = {"export": ("export.onnx_file", "model.onnx"), "gen_trt_engine": ("gen_trt_engine.trt_engine", "")}
# action -> data set section -> annotation files to take, the first that exists; a section without one is left out
SPLITS = {
    "train": {"train_dataset": ("train.txt",), "val_dataset": ("val.txt",)},
    "automl": {"train_dataset": ("train.txt",), "val_dataset": ("val.txt",)},
    "evaluate": {"test_dataset": ("test.txt", "val.txt")},
    "inference": {"infer_dataset": ("test.txt", "val.txt")},
    "quantize": {"train_dataset": ("train.txt", "val.txt", "test.txt"), "val_dataset": ("val.txt", "test.txt")},
}
DATA_PORTS = ("images", "annotations")
# typed parameter -> spec key; an empty value ("" or 0) leaves the key to the spec
TYPED = {
    "train": {
        "num_epochs": "train.num_epochs",
        "batch_size": "dataset.train_dataset.batch_size",
        "learning_rate": "train.optim.lr",
        "precision": "train.precision",
        "num_gpus": "train.num_gpus",
        "num_nodes": "train.num_nodes",
    },
    "evaluate": {"batch_size": "dataset.test_dataset.batch_size"},
    "trt_evaluate": {"batch_size": "dataset.test_dataset.batch_size"},
    "inference": {"batch_size": "dataset.infer_dataset.batch_size"},
    "trt_inference": {"batch_size": "dataset.infer_dataset.batch_size"},
    "export": {"input_height": "export.input_height", "input_width": "export.input_width"},
    "automl": {
        "algorithm": "automl.algorithm",
        "max_recommendations": "automl.automl_max_recommendations",
        "max_epochs": "automl.automl_max_epochs",
    },
    "quantize": {"backend": "quantize.backend"},
    "gen_trt_engine": {
        "backend": "gen_trt_engine.backend",
        "precision": "gen_trt_engine.tensorrt.data_type",
    },
}
FLAT = (
    "synthesize",
    "fetch_dataset",
    "report",
    "publish_model",
    "final_status",
)  # their parameters are keys of the spec
NODE_VARIABLES = ("PET_NODE_RANK", "NODE_RANK", "RANK")  # as training/distribution.py reads them
LATEST = "dn_model_latest.pth"  # a training's results folder given as a model: its newest checkpoint
RUN_NOTES = ("status.json", "experiment.yaml")  # files about a run, no part of an artifact


@dataclass(frozen=True)
class Artifact:
    """One artifact of the ExecutorInput; `path` is where it lies on this machine."""

    port: str
    name: str
    type: dict
    uri: str
    path: Path
    metadata: dict = field(default_factory=dict)

    @property
    def kind(self) -> str:
        port = self.port.partition(".")[0]
        return KINDS.get(port, port)


def main(argv: list[str] | None = None) -> int:
    """Run one action; returns its exit code (see `stereo_core.run.perform`)."""
    argv = sys.argv[1:] if argv is None else argv
    received: list[int] = []
    try:
        with sigterm_raises(received):  # digests of large inputs take minutes
            if len(argv) != 2 or argv[0] not in ACTIONS:
                raise UserError(
                    f"usage: depth_net-launch ACTION EXECUTOR_INPUT_JSON, ACTION one of {', '.join(ACTIONS)}"
                )
            return launch(argv[0], argv[1])
    except (Exception, KeyboardInterrupt, Terminated) as error:
        return _failed(Terminated("SIGTERM") if received else error)


def _failed(error: BaseException) -> int:
    """Say what ended the run before its action began; its exit code."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    explain(error, reason)
    if isinstance(error, Exception) and not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"depth_net-launch: error: {reason}", file=sys.stderr)
    if isinstance(error, Exception):
        return 2 if isinstance(error, UserError) else 1
    return 143 if isinstance(error, Terminated) else 130


def launch(action: str, executor_input: str) -> int:
    """Check the inputs, build the spec, perform the action, publish its outputs."""
    try:
        message = json.loads(executor_input)
        outputs = message["outputs"]
        output_file = Path(outputs["outputFile"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"EXECUTOR_INPUT_JSON is no ExecutorInput message: {type(error).__name__}: {error}") from None

    given = message.get("inputs") or {}
    inputs = _artifacts(given)
    for artifact in inputs.values():
        check_artifact(artifact)
    check_ports(action, inputs)
    parameters = with_integers(given.get("parameterValues") or {})
    results = output_file.parent / "results"

    tree = user_spec(action, parameters, inputs)
    said = json.dumps(tree, sort_keys=True)
    digest = hashlib.sha256(said.encode()).hexdigest()
    wire(action, tree, parameters.get("dataset_name", ""), inputs, results)
    # each node of a distributed training notes its own attempts, in a folder that all of them may share
    node = next((os.environ[name] for name in NODE_VARIABLES if name in os.environ), "0")
    if action == "train" and _is_another_attempt(output_file.parent / f"attempted.{node}", executor_input):
        train = tree["train"]
        train["resume_training_checkpoint_path"] = train.get("resume_training_checkpoint_path") or "auto"

    from stereo_core.run.perform import perform
    from stereo_core.spec import spec_from_dict

    def publish_all(outcome: Outcome) -> None:
        published = publish(action, outcome, _artifacts(outputs), results, digest, json.loads(said))
        for name, place in (outputs.get("parameters") or {}).items():
            with atomic_path(place["outputFile"]) as temporary:
                temporary.write_text(json.dumps(outcome.kpi[name]))
        with atomic_path(output_file) as temporary:
            temporary.write_text(json.dumps({"parameterValues": {}, "artifacts": published}, allow_nan=False))

    spec = spec_from_dict(action, tree)
    if action == "trt_evaluate" and spec.evaluate.resize == "none":
        check_frame(inputs["engine"], spec.dataset.test_dataset.data_sources[0])
    # Last, since large inputs take minutes; models, which are smaller, before data.
    for artifact in sorted(inputs.values(), key=lambda one: one.kind not in FORMATS):
        check_digest(artifact)
    return perform(action, spec, on_outcome=publish_all)


def _is_another_attempt(note: Path, executor_input: str) -> bool:
    """Whether the same task was tried in this folder before; notes this attempt."""
    digest = hashlib.sha256(executor_input.encode()).hexdigest()
    before = note.read_text() if note.is_file() else ""
    with atomic_path(note) as temporary:
        temporary.write_text(digest)
    return before == digest


# ---- inputs


def _artifacts(section: dict) -> dict[str, Artifact]:
    """The artifact of each port; of a port that takes a list the others as `port.1`, `port.2`. Ports without one
    (optional inputs) are left out."""
    found = {}
    for name, entry in (section.get("artifacts") or {}).items():
        for index, item in enumerate(entry.get("artifacts") or ()):
            port, uri = f"{name}.{index}" if index else name, item.get("uri", "")
            path = Path(item["customPath"]) if item.get("customPath") else local_path(uri)
            metadata = with_integers(item.get("metadata") or {})
            found[port] = Artifact(port, item.get("name", port), item.get("type", {}), uri, path, metadata)
    return found


def check_artifact(artifact: Artifact) -> None:
    """Refuse an input that is absent, or of another kind or format.

    Metadata that a foreign producer did not write is not asked for.

    Raises:
        DataError, ModelError: the artifact can not be used here.
    """
    error = ModelError if artifact.kind in FORMATS else DataError
    if not artifact.path.exists():
        raise error(f"input {artifact.port}: {artifact.uri} is not at {artifact.path}")
    kind, form = artifact.metadata.get("kind"), artifact.metadata.get("format")
    kinds = MODEL_KINDS if artifact.kind == "model" else (artifact.kind,)
    if kind and kind not in kinds:
        wanted = " or ".join(map(repr, kinds))
        raise error(f"input {artifact.port}: {artifact.uri} is of kind {kind!r}; {wanted} is wanted here")
    if form and form not in FORMATS.get(artifact.kind, (form,)):
        wanted = " or ".join(FORMATS[artifact.kind])
        raise error(f"input {artifact.port}: {artifact.uri} has format {form!r}; {wanted} is wanted here")


def check_ports(action: str, inputs: dict[str, Artifact]) -> None:
    """Refuse a task that lacks an input.

    Raises:
        UserError: names all that are missing.
    """
    data = DATA_PORTS if action.removeprefix("trt_") in SPLITS else ()
    wanted = {"convert": {"images"}, "publish_model": {"model"}}.get(action, {*MODEL_KEYS.get(action, ()), *data})
    if action == "quantize":  # one of the two
        wanted -= {"checkpoint", "onnx"} if {"checkpoint", "onnx"} & set(inputs) else {"onnx"}
    missing = sorted(wanted - {"pretrained"} - set(inputs))
    if missing:
        raise UserError(f"{action}: EXECUTOR_INPUT_JSON names no artifact for input {', '.join(missing)}")


def check_digest(artifact: Artifact) -> None:
    """Refuse an input that changed since it was made: of a model's folder all files count, where it says so.

    Raises:
        DataError, ModelError: a digest differs.
    """
    whole = artifact.metadata.get("folder_sha256") if artifact.path.is_dir() else None
    digest = whole or artifact.metadata.get("sha256")
    if digest and digest != sha256_of(artifact.path if whole else content(artifact)):
        error = ModelError if artifact.kind in FORMATS else DataError
        raise error(f"input {artifact.port}: {artifact.uri} changed since it was made (sha256 differs); make it again")


def check_frame(engine: Artifact, source: Any) -> None:
    """Refuse an engine of one size, as its metadata has it, that is not the size of the first image.

    Raises:
        ModelError: the sizes differ. DataError: the list or the image can not be read.
    """
    from stereo_core.data.annotations import read_annotations
    from stereo_core.data.images import read_image

    said = engine.metadata
    frame = tuple(said.get(f"input_{side}") for side in ("height", "width"))
    if None in frame or any(said.get(f"min_{side}") != said.get(f"max_{side}") for side in ("height", "width")):
        return
    first = read_annotations(source.data_file, source.data_root)[0]
    size = read_image(first.left).shape[:2]
    if size != frame:
        raise ModelError(
            f"input engine: {engine.uri} is for images of {frame[0]} x {frame[1]}, and {first.left} has {size[0]} x "
            f"{size[1]}; set evaluate.resize to pad or stretch, or build an engine of this size"
        )


def content(artifact: Artifact) -> Path:
    """The model file inside a Model artifact's folder, or the artifact's own path."""
    if artifact.kind not in FORMATS or artifact.path.is_file():
        return artifact.path
    if artifact.metadata.get("file"):
        file = artifact.path / Path(artifact.metadata["file"]).name
        if not file.is_file():
            raise ModelError(f"input {artifact.port}: {artifact.uri} holds no {file.name}")
        return file
    latest = artifact.path / LATEST
    if latest.is_file():
        return latest.resolve()
    from stereo_core.engines.files import read_sidecar

    here = sorted(path for path in artifact.path.iterdir() if path.is_file())
    files = [p for p in here if p.suffix in (".pth", ".pt", ".safetensors", ".onnx") or read_sidecar(p)]
    if len(files) != 1:
        names = ", ".join(p.name for p in files) or "none"
        raise ModelError(f"input {artifact.port}: {artifact.uri} must hold one model file; found: {names}")
    return files[0]


# ---- spec


def user_spec(action: str, parameters: dict, inputs: dict[str, Artifact]) -> dict:
    """What the user said: spec_file < spec parameter < typed parameters. Defaults are the spec's own business."""
    if action in FLAT:
        return dict(parameters)
    spec = parameters.get("spec") or {}
    if not isinstance(spec, dict):
        raise UserError(f"parameter spec: a mapping of spec keys is wanted, not {spec!r}")
    tree = merge(_read_spec_file(inputs.get("spec_file")), spec)
    for name, key in TYPED.get(action, {}).items():
        if parameters.get(name):
            put(tree, key, parameters[name])
    return tree


def _read_spec_file(artifact: Artifact | None) -> dict:
    if artifact is None:
        return {}
    from stereo_core.spec.loading import read_tree

    return read_tree(artifact.path)


def merge(below: dict, above: dict) -> dict:
    """`above` over `below`, mapping by mapping; lists and scalars are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def put(tree: dict, key: str, value: object) -> None:
    """Set a dotted key, making the sections on the way."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def wire(action: str, tree: dict, dataset_name: str, inputs: dict[str, Artifact], results: Path) -> None:
    """Set the keys that name files in `tree` (in place) from the ports; they win over what the user said."""
    verb = action.removeprefix("trt_")
    if action == "convert" or action in FLAT:
        tree["results_dir"] = str(results)
        if action == "convert":
            tree |= {"data_root": referred(inputs["images"].path), "relative_paths": True}
        if action == "report":
            order = (*COMPARED, *(port for port in inputs if port.partition(".")[0] == "many"))
            tree["results"] = [str(inputs[port].path) for port in order if port in inputs]
            names = tree.get("names") or []
            tree["names"] = [one.get("title") or one.get("uri") if isinstance(one, dict) else one for one in names]
        if action == "publish_model":
            metrics = inputs.get("metrics")
            tree |= {"model_path": str(content(inputs["model"])), "metrics_path": str(metrics.path) if metrics else ""}
        return
    put(tree, f"{verb}.results_dir", str(results))
    if verb in ("evaluate", "inference"):  # exactly one of the two is set, by the port
        put(tree, f"{verb}.checkpoint", "")
        put(tree, f"{verb}.trt_engine", "")
    for port, key in MODEL_KEYS[action].items():
        if port in inputs:
            put(tree, key, str(content(inputs[port])))
    if action in OUTPUT_FILES:
        key, name = OUTPUT_FILES[action]
        put(tree, key, str(results / name) if name else "")
    for section, names in SPLITS.get(verb, {}).items():
        images = referred(inputs["images"].path)
        _wire_sources(tree, section, names, dataset_name, images, inputs["annotations"].path)


def _wire_sources(tree: dict, section: str, names: tuple, dataset_name: str, images: str, annotations: Path) -> None:
    """Give a data set section its sources: the user's with paths resolved, else the first of `names` there is.

    A single source of the user's that names no list says how that one is read (`disparity_scale`, ...).
    """
    dataset = tree.get("dataset") if isinstance(tree.get("dataset"), dict) else {}
    given = (dataset.get(section) or {}).get("data_sources") or []
    sources = [dict(source) for source in given if isinstance(source, dict)]
    unnamed = [source for source in sources if not source.get("data_file")]
    if unnamed and len(sources) > 1:
        raise SpecError(
            f"dataset.{section}.data_sources: {len(unnamed)} of {len(sources)} sources name no data_file; name a list "
            "of the annotations in each, or give one source, which takes the list that convert made"
        )
    if unnamed or not sources:
        lists = [annotations] if annotations.is_file() else [annotations / name for name in names]
        data_file = next((path for path in lists if path.is_file()), None)
        if data_file is None and section == "val_dataset":
            return
        if data_file is None:
            found = ", ".join(sorted(p.name for p in annotations.glob("*.txt"))) or "no .txt file"
            raise DataError(
                f"input annotations: {annotations} holds no {' or '.join(names)} (found: {found});"
                " choose convert's split_ratio accordingly or name data_sources in the spec"
            )
        source = unnamed[0] if unnamed else {}
        name = dataset_name or source.get("dataset_name") or "GenericDataset"
        sources = [source | {"data_file": str(data_file), "dataset_name": name}]
    for source in sources:
        source["data_file"] = _below(str(annotations), source["data_file"])
        if not is_uri(source["data_file"]) and not os.path.isfile(source["data_file"]):
            raise DataError(
                f"dataset.{section}.data_sources: no such list: {source['data_file']}; relative names are looked up in "
                "the input annotations, and without data_sources the list that convert made is taken"
            )
        source["data_root"] = _below(images, source.get("data_root") or "")
    put(tree, f"dataset.{section}.data_sources", sources)


def _below(folder: str, path: str) -> str:
    """A relative path below the folder or URI; an absolute one and a URI as they are."""
    return path if is_uri(path) else os.path.join(folder, path).rstrip("/")


# ---- outputs


def publish(
    action: str,
    outcome: Outcome,
    outputs: dict[str, Artifact],
    results: Path,
    spec_sha256: str,
    said: dict | None = None,
) -> dict:
    """Put the results where the ports want them; returns the `artifacts` part of executor_output.json.

    `said` is the spec as the user gave it, without the ports.
    """
    published = {}
    for port, artifact in outputs.items():
        if port == "metrics":
            metadata = _json(outcome.kpi)
            with atomic_path(artifact.path) as temporary:
                temporary.write_text(json.dumps(metadata, indent=2) + "\n")
            metadata |= {"format": "json"}
        elif port == "best_spec":
            _publish_spec(artifact.path, said or {}, outcome.metadata[port])
            metadata = {"format": "yaml"}
        elif port == "report":
            from stereo_core.report.html import action_report

            own = outcome.artifacts.get(port)
            text = own.read_text(encoding="utf-8") if own else action_report(results, outcome, action)
            with atomic_path(artifact.path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            metadata = {"format": "html"}
        elif port in ("card", "summary"):
            with atomic_path(artifact.path) as temporary:
                shutil.copyfile(outcome.artifacts[port], temporary)
            metadata = {"format": "md"}
        else:
            metadata = _publish_result(artifact, Path(outcome.artifacts[port]))
        metadata |= _json(outcome.metadata.get(port, {}))
        once = functools.cache(sha256_of)
        if "file" in metadata:
            metadata["folder_sha256"] = sha256_of(artifact.path, once)
        metadata |= {
            "kind": metadata.get("kind", artifact.kind),
            "sha256": once(artifact.path / metadata.get("file", "")),
            "bytes": size_of(artifact.path),
            "producer": f"stereo-pipelines {__version__} {action}",
            "spec_sha256": spec_sha256,
        }
        item = {"name": artifact.name, "type": artifact.type, "uri": artifact.uri, "metadata": metadata}
        published[port] = {"artifacts": [item]}
    return published


def _publish_spec(path: Path, said: dict, values: dict[str, float]) -> None:
    """What the user said with the best values, as a spec file for `train`, whose ports name the files again."""
    import yaml

    tree = {name: value for name, value in said.items() if name != "automl"}
    for key, value in values.items():
        put(tree, key, value)
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _publish_result(artifact: Artifact, source: Path) -> dict:
    """Put a model file (with what lies beside it) or a folder at the artifact's path; returns format and file name."""
    model = artifact.kind in FORMATS
    temporary = artifact.path.with_name(f".{artifact.path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was cut off
    if model:
        temporary.mkdir(parents=True)
        for file in source.parent.iterdir():
            if file.name == source.name or file.name.startswith(source.name + "."):
                _place(file.resolve(), temporary / file.name)
    else:
        shutil.copytree(source, temporary, copy_function=_place, ignore=shutil.ignore_patterns(*RUN_NOTES))
    if artifact.path.is_dir():
        shutil.rmtree(artifact.path)
    artifact.path.unlink(missing_ok=True)
    os.replace(temporary, artifact.path)
    if not model:
        return {"format": FOLDER_FORMATS[artifact.kind]}
    return {"format": _model_format(artifact.path / source.name), "file": source.name}


def _model_format(file: Path) -> str:
    """pth, safetensors, onnx; for an engine trt, rtx or ort, as its side-car says."""
    side_car = file.with_name(file.name + ".json")
    if not side_car.is_file():
        return file.suffix.removeprefix(".")
    return ENGINE_FORMATS.get(json.loads(side_car.read_text()).get("backend"), file.suffix.removeprefix("."))


def _place(source: str | Path, target: str | Path) -> None:
    """A hard link where the file system allows it, a copy elsewhere."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _json(value):
    """What strict JSON can hold: NaN and infinities become their names, keys without a value go."""
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


if __name__ == "__main__":
    sys.exit(main())
