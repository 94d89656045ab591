"""The scalar types of a spec, and `key`, which declares every key."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A group of keys. Unknown keys are errors. Key names may start with `model_`."""

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
        """An empty section (`wandb:` alone in YAML) has all defaults."""
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
    """Declare a key: default, description and rules (`ge`, `gt`, `le`, `lt`, `min_length`, `max_length`).

    Args:
        automl: a hyperparameter search may tune the key.
        mandatory: TAO's `???`: verbs that need the key refuse an empty value.
        secret: the value is never written to a file or a log.
    """
    rules["repr"] = not secret
    marks: JsonDict = {"automl": automl}
    marks |= ({"mandatory": True} if mandatory else {}) | ({"secret": True} if secret else {})
    return Field(default=default, description=description, json_schema_extra=marks, **rules)


def marks_of(field: FieldInfo) -> JsonDict:
    """The marks that `key` gave a key: automl, mandatory, secret."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def section(group: type[Section], description: str) -> Any:
    """Declare a nested group of keys with their defaults."""
    return Field(default_factory=group, description=description)


def _number(value: Any) -> Any:
    """Accept numbers and their text forms (`1e-4`), but not true and false, which Python treats as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    return value


def _text(value: Any) -> Any:
    """Accept text; null becomes the empty text, and a number stays as written (`wandb.run_id=17`)."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def null_is(value: Any) -> BeforeValidator:
    """For keys that may be null in TAO: null means `value`."""
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
    """Accept the choices in any case; the value becomes the spelling given here."""
    spelling = {choice.lower(): choice for choice in choices}
    return BeforeValidator(lambda value: spelling.get(value.lower(), value) if isinstance(value, str) else value)


def spelled(**meanings: str) -> BeforeValidator:
    """Accept aliases of choices: alias -> choice."""
    return BeforeValidator(lambda value: meanings.get(value, value) if isinstance(value, str) else value)


DatasetName = Annotated[
    Literal["", "FSD", "IsaacRealDataset", "Crestereo", "Middlebury", "Eth3d", "Kitti", "GenericDataset", "Synthetic"],
    any_case("FSD", "IsaacRealDataset", "Crestereo", "Middlebury", "Eth3d", "Kitti", "GenericDataset", "Synthetic"),
]
