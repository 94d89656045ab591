"""The scalar types of a spec and `key`, with which every key is declared."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A group of keys. Unknown keys are errors; `model_...` is an ordinary name here."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        """A section without keys (`wandb:` alone in YAML) is at its defaults."""
        return {} if value is None else value


def key(
    default: Any,
    description: str,
    *,
    automl: bool = False,
    mandatory: bool = False,
    secret: bool = False,
    **rules: Any,
) -> Any:
    """Declare a key: its default, what it means, and its rules (`ge`, `gt`, `le`, `lt`, `min_length`, `max_length`).

    Args:
        automl: a hyperparameter search may tune it.
        mandatory: TAO's `???`: a verb that needs it refuses an empty value.
        secret: never written to a file or a log.
    """
    rules["repr"] = not secret
    marks: JsonDict = {"automl": automl}
    marks |= ({"mandatory": True} if mandatory else {}) | ({"secret": True} if secret else {})
    return Field(default=default, description=description, json_schema_extra=marks, **rules)


def marks_of(field: FieldInfo) -> JsonDict:
    """The marks that `key` gave a key: automl, mandatory, secret."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def section(group: type[Section], description: str) -> Any:
    """Declare a nested group of keys, all at their defaults."""
    return Field(default_factory=group, description=description)


def _number(value: Any) -> Any:
    """Numbers and their spellings (`1e-4`), but never true or false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    return value


def _text(value: Any) -> Any:
    """Text; null is the empty text, and a bare number is meant as written (`wandb.run_id=17`)."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def null_is(value: Any) -> BeforeValidator:
    """Keys that may be null in TAO: null means `value`."""
    return BeforeValidator(lambda given: copy.copy(value) if given is None else given)


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number), AllowInfNan(False)]
Text = Annotated[str, BeforeValidator(_text)]
NonNegative = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
"""[height, width] in px."""
Range = Annotated[list[Float], Field(min_length=2, max_length=2)]
Texts = Annotated[list[Text], null_is([])]
Mapping = Annotated[dict[str, Any], null_is({})]


def any_case(*choices: str) -> BeforeValidator:
    """Choices in any case; the value becomes the spelling given here."""
    spelling = {choice.lower(): choice for choice in choices}
    return BeforeValidator(lambda value: spelling.get(value.lower(), value) if isinstance(value, str) else value)


def spelled(**meanings: str) -> BeforeValidator:
    """Other words for choices: word -> the choice that it means."""
    return BeforeValidator(lambda value: meanings.get(value, value) if isinstance(value, str) else value)


DatasetName = Annotated[
    Literal["", "FSD", "IsaacRealDataset", "Crestereo", "Middlebury", "Eth3d", "Kitti", "GenericDataset", "Synthetic"],
    any_case("FSD", "IsaacRealDataset", "Crestereo", "Middlebury", "Eth3d", "Kitti", "GenericDataset", "Synthetic"),
]
