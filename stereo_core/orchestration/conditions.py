"""Parses conditions of the IR (dsl.If, dsl.Elif, dsl.Else) into comparisons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from stereo_core.orchestration.dag import Comparison, Constant, GraphError, Source

_REFERENCE = r"inputs\.parameter_values\['[^']+'\]"
_OPERAND = rf"(?:int|double)\((?:{_REFERENCE}|[-+.\w]+)\)|{_REFERENCE}|[-+.\w]+|'.*?'(?=$|\)$| && |\) && )"
_COMPARISON = re.compile(rf"(!\()?({_OPERAND}) (==|!=|<=|>=|<|>) ({_OPERAND})(\))?(?: && |$)", re.DOTALL)


def comparisons(where: str, text: str, inputs: dict[str, Source]) -> Iterator[Comparison]:
    """Parse `a == b`, and for dsl.Elif and dsl.Else `!(a == b) && c == d`. KFP does not escape quotes in texts."""
    position = 0
    while position < len(text):
        found = _COMPARISON.match(text, position)
        if not found or bool(found[1]) != bool(found[5]):
            raise GraphError(
                f"{where}: the condition {text} is not supported; compare two values with ==, !=, <, <=, > or >= in "
                "each dsl.If and dsl.Elif"
            )
        left, right = (_operand(where, found[side], inputs) for side in (2, 4))
        shown = re.sub(r"inputs\.parameter_values\['(?:pipelinechannel--)?([^']+)'\]", r"\1", found[0])
        yield Comparison(left, found[3], right, bool(found[1]), shown.removesuffix(" && "))
        position = found.end()


def _operand(where: str, text: str, inputs: dict[str, Source]) -> Source:
    if text.startswith("'"):
        return Constant(text[1:-1])
    text = re.sub(r"^(?:int|double)\((.*)\)$", r"\1", text)
    name = re.fullmatch(r"inputs\.parameter_values\['([^']+)'\]", text)
    if not name:
        return Constant(json.loads(text))
    if name[1] not in inputs:
        raise GraphError(
            f"{where}: its condition uses {name[1]}, which is not one of its inputs; compile the pipeline again"
        )
    return inputs[name[1]]
