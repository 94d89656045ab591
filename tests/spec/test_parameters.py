"""Every parameter of TAO's contract is a key here, with its type, default, range and choices."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase

import pytest

from stereo_core.spec.schema import json_schema

TYPES = {
    "float": "number",
    "int": "integer",
    "ordered_int": "integer",
    "bool": "boolean",
    "string": "string",
    "categorical": "string",
    "list": "array",
    "collection": "object",
}
AMENDED = {  # path pattern -> what differs here and is written down (INTERFACES.md, "Spec keys"; ??? is an empty text)
    "*.min_scale": {"min": -1, "max": 1},
    "*.max_scale": {"min": -1, "max": 1},
    "*.workers": {"min": 0},  # ours: 0 loads in the process itself
    "*.data_sources": {"default": []},  # TAO's own run-time default is null
    "*.disparity_scale": {},
    "model.encoder": {"options": ["vits", "vitb", "vitl", "vitg", "vitt"]},
    "model.model_type": {
        "default": "FoundationStereo",
        "options": ["FoundationStereo", "MetricDepthAnything", "RelativeDepthAnything", "FastFoundationStereo"],
    },
    "model.max_disparity": {"min": 32},
    "train.optim.lr_scheduler": {
        "options": [
            "MultiStepLR",
            "MultiStep",
            "StepLR",
            "CustomMultiStepLRScheduler",
            "LambdaLR",
            "PolynomialLR",
            "OneCycleLR",
            "CosineAnnealingLR",
        ]
    },
    "gen_trt_engine.tensorrt.data_type": {"default": "fp32", "options": ["fp32", "fp16", "bf16", "int8", "fp8"]},
    "gen_trt_engine.tensorrt.workspace_size": {"default": 4},
    "quantize.backend_kwargs": {"default": {}},
    "quantize.layers[[]].*.dtype": {"options": ["", "int8", "fp8_e4m3fn", "fp8_e5m2", "native"]},
    "dataset.*_dataset.data_sources[[]].dataset_name": {
        "options": [
            "",
            "FSD",
            "IsaacRealDataset",
            "Crestereo",
            "Middlebury",
            "Eth3d",
            "Kitti",
            "GenericDataset",
            "Synthetic",
        ]
    },
    "split_ratio": {"max": 1},  # TAO forgets it; a share above 1 has no meaning
    # a count, an index or a length can not be lower:
    "train.checkpoint_interval_steps": {"min": 1},
    "train.log_every_n_steps": {"min": 1},
    "train.vis_step_interval": {"min": 1},
    "export.gpu_id": {"min": 0},
}
WIDTHS = ("motion_encoder_final", "gru_hidden", "disp_head_i*", "spx_gru_out", "classifier_mid", "cam_mid_channels")
AMENDED |= {f"model.{name}": {"min": 1} for name in WIDTHS}
AMENDED |= {
    f"gen_trt_engine.{name}_{side}": {"min": 1} for name in ("min", "opt", "max") for side in ("height", "width")
}


@pytest.fixture(scope="module")
def parameters(shared) -> list[dict]:
    return json.loads((shared / "contract" / "parameters.json").read_text())


def look_up(schema: dict, path: str) -> dict:
    node = schema
    for part in path.replace("*", "train").split("."):
        node = node["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            node = node["items"]
    not_null = [option for option in node.get("anyOf", []) if option["type"] != "null"]
    return node | not_null[0] if not_null else node


def described(entry: dict) -> dict:
    """An entry of parameters.json as the schema should have it."""
    amended = next((rules for pattern, rules in AMENDED.items() if fnmatchcase(entry["path"], pattern)), {})
    expected = {"type": TYPES[entry["type"]], "default": entry["default"], "options": entry["options"]}
    expected |= {name: None if entry[name] == "inf" else entry[name] for name in ("min", "max")}
    if entry["default"] == "???" or (entry["default"] is None and entry["type"] == "string"):
        expected["default"] = ""
    if entry["math_cond"]:
        assert entry["math_cond"].startswith("> 0") and entry["min"] in (None, 0, 1, 1e-6, 1e-8)
        expected["min"] = entry["min"] or 0
    if entry["options"] and entry["type"] == "ordered_int":
        expected["min"] = None  # the choices say it
    return expected | amended


def found(node: dict) -> dict:
    return {
        "type": node["type"],
        "default": node.get("default"),
        "options": node.get("enum"),
        "min": node.get("minimum", node.get("exclusiveMinimum")),
        "max": node.get("maximum"),
    }


def test_every_parameter_is_here_as_the_contract_has_it(parameters):
    assert len(parameters) == 279
    schemas = {verb: json_schema(verb) for verb in ("convert", "train")}
    wrong = {}
    for entry in parameters:
        verb = "convert" if entry["actions"] == ["convert"] else "train"
        actual, expected = found(look_up(schemas[verb], entry["path"])), described(entry)
        if actual["options"] and expected["options"]:
            actual["options"], expected["options"] = sorted(actual["options"]), sorted(expected["options"])
        if actual != expected:
            wrong[entry["path"]] = {
                name: (actual[name], expected[name]) for name in actual if actual[name] != expected[name]
            }
    assert not wrong


def test_open_bounds_are_open(parameters):
    schema = json_schema("train")
    for entry in parameters:
        if (entry["math_cond"] or "").startswith("> 0") and not entry["min"]:
            assert look_up(schema, entry["path"])["exclusiveMinimum"] == 0, entry["path"]


def test_automl_marks_are_those_of_the_contract_where_the_key_has_an_effect(parameters):
    schema = json_schema("train")
    marked = {p["path"] for p in parameters if p["automl"] and look_up(schema, p["path"])["automl"]}
    ours = {"train.optim.lr", "train.optim.momentum", "train.optim.weight_decay", "train.optim.lr_step_size"}
    assert ours | {"train.optim.lr_decay", "train.optim.min_lr", "model.corr_radius"} <= marked
    assert not [path for path in marked if path.startswith(("dataset.val", "dataset.test", "dataset.infer"))]
    assert not {"model.cv_group", "model.volume_dim"} & marked
