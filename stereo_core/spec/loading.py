"""Loads a spec from a file, overrides and defaults, and checks it. One error message lists all problems."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stereo_core.arguments import at_home
from stereo_core.errors import SpecError
from stereo_core.spec import paths, requirements
from stereo_core.spec.experiment import ExperimentSpec, sections_of, spec_class
from stereo_core.spec.fields import Section
from stereo_core.spec.interpolation import resolve
from stereo_core.spec.model import PRESETS
from stereo_core.spec.overrides import apply_override, is_spread, merged, parse_override, split_by_the_shell, whole
from stereo_core.spec.text import parse
from stereo_core.values import near

FEW = 4  # top-level keys that a message lists


@dataclass
class _Source:
    """The origin of each value, for error messages."""

    name: str
    overridden: list[str] = field(default_factory=list)

    def of(self, path: str) -> str:
        related = (other for other in self.overridden if _starts(path, other) or _starts(other, path))
        return "command line" if any(related) else self.name


def _starts(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def load_spec(verb: str, path: Path | None, overrides: Sequence[str] = ()) -> Section:
    """The spec of a verb, from an optional YAML file and `key=value` overrides.

    Returns:
        An instance of the verb's spec class. The verb's mandatory keys are set and its input files exist.

    Raises:
        SpecError: one line per problem, each with the file (or `command line`), the dotted path and the broken rule.
    """
    source = _Source(str(path) if path else "command line")
    tree = read_tree(path) if path else {}
    complaints = []
    for group in whole(overrides):
        try:
            _override(tree, group, source)
        except SpecError as error:
            complaints.append(f"command line: {error}")
    return _finish(verb, tree, source, complaints)


def _override(tree: dict[str, Any], tokens: tuple[str, ...], source: _Source) -> None:
    """Apply one override. Raises SpecError if it is invalid, e.g. split by the shell."""
    if len(tokens) > 1:
        raise split_by_the_shell(tokens)
    keys, value = parse_override(tokens[0])
    path = paths.dotted(keys)
    if path in source.overridden and is_spread(value):
        raise SpecError(f"{path}: is set twice (did the shell expand braces?); quote the whole argument")
    source.overridden.append(path)
    apply_override(tree, keys, value)


def spec_from_dict(verb: str, tree: dict[str, Any], source: str = "spec") -> Section:
    """Like load_spec, from a dict; `source` names it in error messages."""
    return _finish(verb, copy.deepcopy(tree), _Source(source), [])


def read_tree(path: Path) -> dict[str, Any]:
    """The keys of a spec file. An empty file is an empty spec; the file name does not matter.

    Raises:
        SpecError: the file cannot be read, or is not UTF-8, not YAML or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such spec file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    tree = parse(text, str(path))
    if tree is not None and not isinstance(tree, dict):
        raise SpecError(f"{path}: a spec must be a mapping of keys to values, but this is {_kind(tree)}")
    return tree or {}


def _kind(value: Any) -> str:
    """What a YAML document holds, in words."""
    kinds = {list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "text")


def build(verb: str, tree: dict[str, Any]) -> Section:
    """A spec with checked keys, types and ranges. Whether it is complete for the verb is not checked.

    Raises:
        SpecError: unknown verb, or a reference that cannot be resolved.
        ValidationError: wrong keys, types, ranges or choices.
    """
    group = spec_class(verb)
    tree = _at_home(resolve(_without_unset(tree), group))
    if group is ExperimentSpec:
        _apply_preset(tree)
    return group.model_validate(tree)


def checked(verb: str, tree: dict[str, Any], source: str) -> Section:
    """Like `build`, with readable errors: for a spec whose files are on another machine.

    Raises:
        SpecError: one line per problem, each with `source`, the dotted path and the broken rule.
    """
    try:
        return build(verb, tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise SpecError("\n".join(_complaint(verb, one, _Source(source)) for one in details)) from None


def _finish(verb: str, tree: dict[str, Any], source: _Source, complaints: list[str]) -> Section:
    try:
        spec = build(verb, tree)
    except SpecError as error:
        complaints.append(f"{source.name}: {error}")
    except ValidationError as error:
        complaints += [_complaint(verb, detail, source) for detail in error.errors(include_url=False)]
    else:
        requirements.decide(verb, spec)
        complaints += [f"{source.of(path)}: {path}: {rule}" for path, rule in requirements.check(verb, spec)]
        if not complaints:
            requirements.settle(verb, spec)
            return spec
    raise SpecError("\n".join(dict.fromkeys(complaints)))


def _without_unset(value: Any) -> Any:
    """Drop keys with `???`, OmegaConf's mark for a value that is still missing."""
    if isinstance(value, dict):
        return {name: _without_unset(item) for name, item in value.items() if item != "???"}
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    return value


def _at_home(value: Any) -> Any:
    """Expand `~/` at the start of a text to the user's home folder; only paths start that way."""
    if isinstance(value, dict):
        return {name: _at_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return at_home(value) if isinstance(value, str) else value


def _apply_preset(tree: dict[str, Any]) -> None:
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        tree["model"] = merged(PRESETS.get(model["preset"], {}), model)


_RULES = {
    "greater_than_equal": "{value} is less than the smallest value {ge}",
    "greater_than": "{value} is not greater than {gt}",
    "less_than_equal": "{value} is more than the largest value {le}",
    "less_than": "{value} is not less than {lt}",
    "multiple_of": "{value} is not a multiple of {multiple_of}",
    "literal_error": "{value} is not one of {expected}",
    "int_parsing": "{value} is not a whole number",
    "int_from_float": "{value} is not a whole number",
    "int_type": "{value} is not a whole number",
    "float_parsing": "{value} is not a number",
    "float_type": "{value} is not a number",
    "finite_number": "{value} is not a finite number",
    "bool_parsing": "{value} is not true or false",
    "bool_type": "{value} is not true or false",
    "string_type": "{value} is not a text; put it in quotes",
    "string_pattern_mismatch": "{value} does not match {pattern}",
    "list_type": "{value} is not a list; write it in [ ]",
    "dict_type": "{value} is not a mapping; write it as {{key: value}}",
    "model_type": "{value} is not a group of keys",
    "model_attributes_type": "{value} is not a group of keys",
    "too_short": "the list needs at least {min_length} entries, but has {actual_length}",
    "too_long": "the list takes at most {max_length} entries, but has {actual_length}",
}


def _complaint(verb: str, detail: Mapping[str, Any], source: _Source) -> str:
    path = paths.dotted(detail["loc"])
    where = f"{source.of(path)}: {path}"
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_meant(verb, path)}"
    if detail["type"] == "value_error":
        return f"{where}: {detail['ctx']['error']}"
    values = {name: f"{v:g}" if isinstance(v, float) else v for name, v in detail.get("ctx", {}).items()}
    values["value"] = "the value" if path == "encryption_key" else repr(detail["input"])
    rule = _RULES[detail["type"]].format(**values) if detail["type"] in _RULES else detail["msg"]
    return f"{where}: {rule}{_nearest_choice(detail)}"


def _meant(verb: str, path: str) -> str:
    """What to write instead of an unknown key. A section such as `dataset`, given to a verb with a flat spec, is no
    typing error: the file is a spec of other verbs."""
    group = spec_class(verb)
    guess = None if path in ExperimentSpec.model_fields else paths.nearest(path, group, sections_of(verb))
    if guess:
        return f"did you mean {guess}?"
    names = list(group.model_fields)
    all_keys = f"see all keys of {verb} with `depth_net default_specs {verb}`"
    return f"{verb} reads only {', '.join(names)} at the top level; {all_keys}" if len(names) <= FEW else all_keys


def _nearest_choice(detail: Mapping[str, Any]) -> str:
    if detail["type"] != "literal_error":
        return ""
    choices = {choice.lower(): choice for choice in re.findall(r"'([^']*)'", detail["ctx"]["expected"]) if choice}
    guess = near(str(detail["input"]).lower(), choices)
    return f"; did you mean {choices[guess]}?" if guess else ""
