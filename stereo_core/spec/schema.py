"""The keys of a verb as a commented YAML file and as JSON Schema (draft 2020-12)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from stereo_core.spec import effects
from stereo_core.spec.experiment import ExperimentSpec, spec_class
from stereo_core.spec.fields import Section
from stereo_core.spec.paths import dotted, group_of
from stereo_core.verbs import VERBS, section_of

_SHARED = ("results_dir", "encryption_key", "model_name", "dataset", "model")


def json_schema(verb: str) -> dict[str, Any]:
    """JSON Schema of a verb's spec: types, ranges, choices, defaults, meanings.

    Each key carries `automl`: whether a search may tune it, which is only so where it has an effect.
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
    """Without pydantic's titles, and with `automl` false where a key has no effect."""
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
"""Rules that pydantic leaves in its own words where a validator stands before a type."""


def default_specs(verb: str) -> str:
    """Every key that a verb reads, with default, meaning, range and choices, as YAML that loads back to the defaults.

    Keys that must be set read `???`.
    """
    group = spec_class(verb)
    schema = json_schema(verb)
    names = list(group.model_fields)
    if group is ExperimentSpec:
        wanted = {*_SHARED, *VERBS[verb].sections}
        names = [name for name in names if name in wanted]
    head = f"# depth_net {verb}: every key with its default. ??? stands where a value is needed.\n"
    return head + "\n".join(_lines(group, names, schema, ())) + "\n"


def _lines(group: type[Section], names: list[str], schema: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * len(path)
    for name in names:
        field, node = group.model_fields[name], schema["properties"][name]
        comment = f"{field.description} {_rules(node)}".strip()
        why = effects.reason(dotted((*path, name)))
        if why:
            comment += f". No effect here: {why}"
        yield from textwrap.wrap(comment, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        inner, is_list = group_of(field)
        if inner and not is_list:
            yield f"{indent}{name}:"
            yield from _lines(inner, list(inner.model_fields), node, (*path, name))
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
    """What an entry of a list of sections may hold."""
    for name, field in group.model_fields.items():
        node = schema["properties"][name]
        rules = _rules(node)
        yield f"{name}: {field.description}" + (f" {rules}" if rules else "")
        inner, is_list = group_of(field)
        if inner and not is_list:
            yield from (f"{name}.{line}" for line in _entry(inner, node))


def _rules(node: dict[str, Any]) -> str:
    """Range and choices as a reader wants them: `(0 to 1)`, `(one of a, b)`."""
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
