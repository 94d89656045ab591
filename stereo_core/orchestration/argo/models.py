"""hera's models of Argo's resources, with a clear error if hera is not installed."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from stereo_core.errors import UserError

# hera changes how PyYAML writes text in the whole process; this undoes it.
_CLASSES: tuple[Any, ...] = (yaml.representer.SafeRepresenter, yaml.representer.Representer, yaml.Dumper)
_BEFORE = [dict(writer.yaml_representers) for writer in _CLASSES]
try:
    from hera.workflows import models as m
except ModuleNotFoundError as error:
    raise UserError(
        "writing Argo manifests needs hera, which is not installed: pip install 'stereo-pipelines[pipelines]'"
    ) from error
for _writer, _representers in zip(_CLASSES, _BEFORE, strict=True):
    _writer.yaml_representers = _representers

__all__ = ["as_document", "m"]


def as_document(model: BaseModel) -> dict[str, Any]:
    """A hera model as a dict to write as YAML."""
    document: dict[str, Any] = model.model_dump(mode="json", exclude_none=True, by_alias=True)
    return document
