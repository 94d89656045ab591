"""The keys of a verb as a commented YAML file and as JSON Schema (draft 2020-12)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from stereo_core.spec import effects
from stereo_core.spec.dataset import DataSource
from stereo_core.spec.experiment import ExperimentSpec, sections_of, spec_class
from stereo_core.spec.fields import Section
from stereo_core.spec.paths import dotted, group_of
from stereo_core.verbs import VERBS, reads_split, section_of


def json_schema(verb: str) -> dict[str, Any]:
    """JSON Schema of a verb's spec: types, ranges, choices, defaults, descriptions.

    Each key has `automl`: whether a search may tune it. Keys without an effect are never tuned.
    """
    schema = spec_class(verb).model_json_schema()
    definitions = schema.pop("$defs", {})
    tree = _marked(_inlined(schema, definitions), "")
    if "engine" in VERBS[verb].inputs:
        keys = tree["properties"][section_of(verb)]["properties"]
        keys["trt_engine"]["mandatory"] = keys["checkpoint"].pop("mandatory")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | tree | {"title": f"depth_net {verb}"}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _inlined(target | {name: value for name, value in node.items() if name != "$ref"}, definitions)
    return {name: _inlined(value, definitions) for name, value in node.items()}


def _marked(node: dict[str, Any], path: str) -> dict[str, Any]:
    """Remove pydantic's titles, and set `automl` to false for keys without an effect."""
    node = {_KEYWORDS.get(name, name): value for name, value in node.items() if name != "title"}
    why = effects.reason(path)
    if why and "automl" in node:
        node |= {"automl": False, "description": f"{node['description']}. No effect here: {why}"}
    if "properties" in node:
        properties = node["properties"].items()
        node["properties"] = {name: _marked(value, f"{path}.{name}" if path else name) for name, value in properties}
    if isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _marked(node["additionalProperties"], f"{path}.*")
    if isinstance(node.get("items"), dict):
        node["items"] = _marked(node["items"], f"{path}[]")
    if "anyOf" in node:
        node["anyOf"] = [_marked(option, "") for option in node["anyOf"]]
    return node


_KEYWORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}
"""Rules that pydantic leaves under its own names when a validator comes before a type."""


_SHORT = (
    "results_dir",
    "dataset.max_disparity",
    "dataset.*_dataset.data_sources",
    "dataset.*_dataset.batch_size",
    "dataset.*_dataset.workers",
    "dataset.quant_calibration_dataset.images_dir",
    "dataset.train_dataset.augmentation.crop_size",
    "model.encoder",
    "model.max_disparity",
    "model.*_iters",
    "model.stereo_backbone.depth_anything_v2_pretrained_path",
    "train.num_epochs",
    "train.num_gpus",
    "train.precision",
    "train.pretrained_model_path",
    "train.resume_training_checkpoint_path",
    "train.checkpoint_interval",
    "train.validation_interval",
    "train.optim.lr*",
    "train.optim.warmup_steps",
    "automl.algorithm",
    "automl.automl_max_*",
    "automl.automl_hyperparameters",
    "*.checkpoint",
    "*.trt_engine",
    "inference.save_*",
    "inference.calibration",
    "export.input_*",
    "export.dynamic_hw",
    "export.batch_size",
    "gen_trt_engine.backend",
    "gen_trt_engine.compute_capabilities",
    "gen_trt_engine.tensorrt.data_type",
    "gen_trt_engine.tensorrt.*_batch_size",
    "quantize.model_path",
    "quantize.backend",
)
"""The most common keys of ExperimentSpec, as patterns of their paths."""
_OF_A_SOURCE = ("data_file", "dataset_name")


def default_specs(verb: str, short: bool = False) -> str:
    """Every key that a verb reads, with default, description, range and choices, as YAML that loads to the defaults.

    Keys that must be set have the value `???`. With `short` only the most common keys.
    """
    group = spec_class(verb)
    schema = json_schema(verb)
    names = list(group.model_fields)
    if group is ExperimentSpec:
        names = [name for name in names if name in sections_of(verb)]
    which = "the most common keys with their defaults" if short else "every key with its default"
    head = f"# depth_net {verb}: {which}. Replace ??? by a value.\n"
    is_wanted = partial(_is_set_often, verb) if short else None
    return head + "\n".join(_lines(group, names, schema, (), is_wanted)) + "\n"


def _is_set_often(verb: str, path: str) -> bool:
    if not VERBS[verb].sections:
        return not effects.reason(path)
    section, _, rest = path.partition(".")
    if section == "model" and "train" not in VERBS[verb].sections:  # the checkpoint defines the network
        return False
    split, is_split, _ = rest.partition("_dataset.")
    if section == "dataset" and not (reads_split(verb, split) if is_split else VERBS[verb].splits):
        return False
    return any(fnmatchcase(path, pattern) for pattern in _SHORT)


def _lines(
    group: type[Section],
    names: list[str],
    schema: dict[str, Any],
    path: tuple[str, ...],
    is_wanted: Callable[[str], bool] | None,
) -> Iterator[str]:
    """Commented YAML of a section's keys, or only of the selected ones."""
    indent = "  " * len(path)
    for name in names:
        field, node = group.model_fields[name], schema["properties"][name]
        inner, is_list = group_of(field)
        below = []
        if inner and not is_list:
            below = list(_lines(inner, list(inner.model_fields), node, (*path, name), is_wanted))
        if not (below or node.get("mandatory") or is_wanted is None or is_wanted(dotted((*path, name)))):
            continue
        comment = f"{field.description} {_rules(node)}".strip()
        why = effects.reason(dotted((*path, name)))
        if why:
            comment += f". No effect here: {why}"
        yield from textwrap.wrap(comment, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if below:
            yield f"{indent}{name}:"
            yield from below
        elif inner is DataSource and is_wanted:
            yield f"{indent}{name}:"
            yield from (f"{indent}  # {line}" for line in _entry(inner, node["items"]) if line.startswith(_OF_A_SOURCE))
            yield f"{indent}  - {_OF_A_SOURCE[0]}: ???"
            yield f"{indent}    {_OF_A_SOURCE[1]}: ???"
        else:
            yield f"{indent}{name}: {_value(field, node)}"
            if inner:
                yield from (f"{indent}  # - {line}" for line in _entry(inner, node["items"]))


def _value(field: FieldInfo, node: dict[str, Any]) -> str:
    if node.get("mandatory"):
        return "???"
    value = field.get_default(call_default_factory=True)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _entry(group: type[Section], schema: dict[str, Any]) -> Iterator[str]:
    """Commented lines for the keys of a list entry."""
    for name, field in group.model_fields.items():
        node = schema["properties"][name]
        rules = _rules(node)
        yield f"{name}: {field.description}" + (f" {rules}" if rules else "")
        inner, is_list = group_of(field)
        if inner and not is_list:
            yield from (f"{name}.{line}" for line in _entry(inner, node))


def _rules(node: dict[str, Any]) -> str:
    """Range and choices as text: `(0 to 1)`, `(one of a, b)`."""
    node = next((option for option in node.get("anyOf", []) if option.get("type") != "null"), node)
    if "const" in node:
        return f"({node['const']} or null)"
    if "enum" in node:
        return f"(one of {', '.join(str(choice) if choice != '' else repr('') for choice in node['enum'])})"
    low = next((f"{word}{node[name]}" for name, word in _LOW.items() if name in node), "")
    high = next((f"{word}{node[name]}" for name, word in _HIGH.items() if name in node), "")
    return f"({', '.join(part for part in (low, high) if part)})" if low or high else ""


_LOW = {"minimum": ">= ", "exclusiveMinimum": "> "}
_HIGH = {"maximum": "<= ", "exclusiveMaximum": "< "}
