"""YAML for programs in Go, as kubectl and Argo: they read some plain texts as other values than PyYAML does."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that Go's YAML reads as true, false or a number, as y, 1e3 and 0o17."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), [*"yYnN"])
_FLOAT = re.compile(r"^[-+]?(\.?[0-9][0-9_]*|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, [*"-+.0123456789"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("^[-+]?0[oO][0-7_]+$"), [*"-+0"])


def yaml_text(*documents: Any) -> str:
    """Documents as YAML, in the order of their keys."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
