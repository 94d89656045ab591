"""The printed schema and the printed defaults say what loading does."""

from __future__ import annotations

import functools
import itertools
import json

import pytest

from stereo_core.errors import SpecError
from stereo_core.spec import spec_class
from stereo_core.spec.loading import build
from stereo_core.spec.paths import group_of, walk
from stereo_core.spec.schema import default_specs, json_schema
from stereo_core.spec.text import parse
from stereo_core.verbs import VERBS

KEYWORDS = {
    "$schema", "type", "title", "description", "default", "enum", "const", "anyOf", "items", "properties", "pattern",
    "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems",
    "maxItems", "automl", "mandatory", "secret",
}  # fmt: skip


schema_of = functools.cache(json_schema)


def nodes(schema: dict):
    yield schema
    for child in schema.get("properties", {}).values():
        yield from nodes(child)
    for child in [schema["items"]] if isinstance(schema.get("items"), dict) else []:
        yield from nodes(child)
    for child in schema.get("anyOf", []):
        yield from nodes(child)


@pytest.mark.parametrize("verb", VERBS)
def test_the_schema_is_strict_json_of_known_keywords(verb):
    schema = json_schema(verb)
    text = json.dumps(schema, allow_nan=False)
    assert json.loads(text) == schema and "$ref" not in text
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    for node in nodes(schema):
        assert set(node) <= KEYWORDS


@pytest.mark.parametrize("verb", ["convert", "synthesize", "train"])
def test_every_key_has_a_default_a_meaning_and_a_mark(verb):
    for path, field in walk(spec_class(verb)):
        node = json_schema_node(verb, path)
        assert node["description"], path
        if group_of(field)[0] is None:
            assert isinstance(node["automl"], bool), path
            assert "default" in node, path


def json_schema_node(verb: str, path: str) -> dict:
    node = schema_of(verb)
    for part in path.split("."):
        node = node["properties"][part.removesuffix("[]")]
        node = node["items"] if part.endswith("[]") else node
    return node


def test_a_range_stands_in_the_schema():
    node = json_schema_node("train", "train.optim.lr")
    assert (node["minimum"], node["maximum"], node["automl"]) == (1e-6, 1e-2, True)
    assert json_schema_node("train", "model.max_disparity")["multipleOf"] == 32
    assert json_schema_node("train", "train.gpu_ids")["items"]["minimum"] == 0
    assert json_schema_node("train", "train.ema_decay")["anyOf"][0]["exclusiveMaximum"] == 1


def test_a_key_without_effect_is_no_tunable_and_says_why():
    node = json_schema_node("train", "dataset.val_dataset.augmentation.stretch_prob")
    assert node["automl"] is False and "No effect here:" in node["description"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_printed_defaults_load_back_to_the_defaults(verb):
    text = default_specs(verb)
    assert build(verb, parse(text, "defaults")) == build(verb, {})


@pytest.mark.parametrize("verb", ["convert", "evaluate"])
def test_every_key_of_the_verb_is_printed_below_a_comment(verb):
    lines = default_specs(verb).splitlines()
    printed = {line.strip().partition(":")[0] for line in lines if not line.strip().startswith("#")}
    for path, _ in walk(spec_class(verb)):
        head = path.split(".")[0]
        if "[]" not in path and head in ("results_dir", "dataset", "model", verb, "data_root", "image_extension"):
            assert path.rpartition(".")[2] in printed, path
    for before, line in itertools.pairwise(lines):
        if line.strip() and not line.strip().startswith("#"):
            assert before.strip().startswith("#"), line


def test_mandatory_keys_read_as_tao_s_question_marks():
    text = default_specs("export")
    assert "  checkpoint: ???\n" in text and "  onnx_file: ???\n" in text
    for name in ("evaluate", "inference"):
        lines = default_specs(f"trt_{name}").split(f"\n{name}:\n")[1].splitlines()
        assert "  trt_engine: ???" in lines and "  checkpoint: ''" in lines
        assert "\n  trt_engine: ''\n" in default_specs(name)
    with pytest.raises(SpecError, match="ferdinand: unknown verb"):
        default_specs("ferdinand")


@pytest.mark.parametrize("verb", VERBS)
def test_the_short_list_loads_back_to_the_defaults(verb):
    text = default_specs(verb, short=True)
    spec, whole = build(verb, parse(text, "defaults")), build(verb, {})
    for group in [spec, *(getattr(spec.dataset, f"{split}_dataset") for split in SPLITS if VERBS[verb].sections)]:
        if "data_sources" in type(group).model_fields:
            group.data_sources = [source for source in group.data_sources if source.data_file]
    assert spec == whole


SPLITS = ("train", "val", "test", "infer")


def test_the_short_list_has_the_keys_that_people_set_and_no_others():
    keys = {verb: {line.split(":")[0].strip(" -") for line in short_lines(verb)} for verb in VERBS}
    assert {"num_epochs", "lr", "data_file", "dataset_name", "batch_size", "crop_size", "encoder"} <= keys["train"]
    assert not {"cudnn", "eraser_aug_prob", "encryption_key", "wandb", "low_memory", "test_dataset"} & keys["train"]
    assert {"checkpoint", "trt_engine", "test_dataset"} <= keys["evaluate"] and "model" not in keys["evaluate"]
    assert {"onnx_file", "trt_engine", "data_type"} <= keys["gen_trt_engine"] and "dataset" not in keys[
        "gen_trt_engine"
    ]
    assert "nocc_mask_dir_name" not in keys["convert"]  # without effect
    assert all(len(short_lines(verb)) <= 50 for verb in VERBS)


def short_lines(verb: str) -> list[str]:
    return [line for line in default_specs(verb, short=True).splitlines() if not line.strip().startswith("#")]
