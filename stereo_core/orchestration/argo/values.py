"""Where a task's values come from -> Argo's texts, references `{{...}}` and expressions `{{=...}}`; its conditions.

On Argo every value is a text: texts as they are, everything else as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from stereo_core.orchestration.dag import (
    PLACEHOLDER,
    Argument,
    Collected,
    Comparison,
    Constant,
    Filled,
    FinalStatus,
    GraphError,
    OneOf,
    Output,
    Pipeline,
    Source,
    as_text,
)

STATUS = {  # of an exit handler's block, which on Argo is the whole Workflow
    "state": "{{=workflow.status == 'Succeeded' ? 'SUCCEEDED' : 'FAILED'}}",
    "pipelineJobResourceName": "{{workflow.name}}",
}


class Values:
    """The values of one pipeline's tasks; `where` names the place in errors.

    Raises:
        GraphError: a text with braces that Argo would take for its own, or what its expressions can not say.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def text(self, source: Source, where: str) -> str:
        """A parameter's value: a text, which may hold references."""
        match source:
            case Constant(value=value):
                return text_of(value, where)
            case Argument(name=name):
                return f"{{{{workflow.parameters.{name}}}}}"
            case Output(task=task, key=key):
                return f"{{{{tasks.{task}.outputs.parameters.{key}}}}}"
            case Collected(rounds=rounds):
                return f"[{', '.join(self.json(inner, where) for inner in rounds)}]"
            case Filled(value=value, inputs=inputs):
                return self._filled(value, inputs, where)
            case FinalStatus(group=group):
                head = json.dumps(STATUS | {"pipelineTaskName": group}).removesuffix("}")
                return f'{head}, "error": {{"message": {{{{=toJson(workflow.failures)}}}} }} }}'
        return f"{{{{={self.expression(source, where)}}}}}"

    def json(self, source: Source, where: str) -> str:
        """The same as JSON."""
        if isinstance(source, Constant):
            return literal(json.dumps(source.value), where)
        if self.type_of(source) != "STRING":
            return self.text(source, where)
        return f"{{{{=toJson({self.expression(source, where)})}}}}"

    def _filled(self, value: object, inputs: dict[str, Source], where: str, inside: bool = False) -> str:
        """As `dag.filled`; the texts inside a mapping or list are JSON."""
        if isinstance(value, dict):
            keys = (literal(json.dumps(key), where) for key in value)
            items = (self._filled(item, inputs, where, inside=True) for item in value.values())
            return f"{{ {', '.join(map(': '.join, zip(keys, items, strict=True)))} }}"
        if isinstance(value, list):
            return f"[{', '.join(self._filled(item, inputs, where, inside=True) for item in value)}]"
        if not inside:
            return "".join(self._parts(str(value), lambda part: literal(part, where), self.text, inputs, where))
        if not isinstance(value, str) or not PLACEHOLDER.search(value):
            return literal(json.dumps(value), where)
        whole = PLACEHOLDER.fullmatch(value)
        if whole:
            return self.json(inputs[whole[1]], where)
        parts = self._parts(value, lambda part: quoted(part, where), self.expression, inputs, where)
        return f"{{{{=toJson({' + '.join(parts)})}}}}"

    @staticmethod
    def _parts(
        text: str, plain: Callable[..., Any], taken: Callable[..., Any], inputs: dict[str, Source], where: str
    ) -> list[str]:
        parts = PLACEHOLDER.split(text)
        found = [taken(inputs[part], where) if index % 2 else plain(part) for index, part in enumerate(parts)]
        return [said for said, part in zip(found, parts, strict=True) if part]

    def expression(self, source: Source, where: str) -> str:
        """An expression whose value is the text that `text` gives."""
        match source:
            case Constant(value=value):
                return quoted(as_text(value), where)
            case Argument(name=name):
                return f"workflow.parameters['{name}']"
            case Output(task=task, key=key):
                return f"tasks['{task}'].outputs.parameters['{key}']"
            case OneOf(options=options):
                return first_that_ran(options, lambda option: self.expression(option, where))
        raise GraphError(f"{where}: {type(source).__name__} is a value that Argo's expressions can not take")

    def type_of(self, source: Source) -> str:
        """STRING, NUMBER_INTEGER, ... as the IR has it."""
        match source:
            case Argument(name=name):
                return self.pipeline.parameters[name].type
            case Output(task=task, key=key):
                return self.pipeline.tasks[task].component.output_parameters[key].type
            case OneOf(options=options):
                return self.type_of(options[0])
        return "STRING" if isinstance(source, Constant | Filled) else "LIST"

    def condition(self, tests: tuple[Comparison, ...], where: str) -> str | None:
        """All of `tests` as one expression: it stops at the first that does not hold, as what it takes may not be."""
        if not tests:
            return None
        return f"{{{{={' && '.join(self._comparison(test, where) for test in tests)}}}}}"

    def _comparison(self, test: Comparison, where: str) -> str:
        said = f"({self._typed(test.left, where)} {test.operator} {self._typed(test.right, where)})"
        return f"!{said}" if test.negated else said

    def _typed(self, source: Source, where: str) -> str:
        if isinstance(source, Constant) and not isinstance(source.value, str):
            return json.dumps(source.value)
        said, kind = self.expression(source, where), self.type_of(source)
        if kind in ("LIST", "STRUCT"):
            raise GraphError(f"{where}: a condition on a list or a mapping can not be had on Argo")
        casts = {"NUMBER_INTEGER": "asInt({})", "NUMBER_DOUBLE": "asFloat({})", "BOOLEAN": "({} == 'true')"}
        return casts.get(kind, "{}").format(said)


def first_that_ran(options: tuple[Output, ...], said: Callable[[Output], str]) -> str:
    """An expression for dsl.OneOf: what is said of the first option whose task has run."""
    *others, last = options
    chosen = (f"tasks['{option.task}'].status == 'Succeeded' ? {said(option)} : " for option in others)
    return "".join(chosen) + said(last)


def text_of(value: object, where: str) -> str:
    """A value as Argo's parameters have it: text as it is, everything else as JSON."""
    return literal(as_text(value), where)


def literal(text: str, where: str) -> str:
    """`text`, in which Argo must find no reference."""
    if "{{" in text:
        raise GraphError(
            f"{where}: Argo would take {{{{ in {text[:60]!r} for a reference of its own; write it otherwise"
        )
    return text


def quoted(text: str, where: str) -> str:
    """A text inside an expression."""
    if "}}" in text:
        raise GraphError(f"{where}: Argo would take }}}} in {text[:60]!r} for the expression's end; write it otherwise")
    return literal(json.dumps(text, ensure_ascii=False), where)


def substituted(text: str, reference: Callable[[str], str], where: str) -> str:
    """`text` with every {{$...}} of KFP replaced; the rest may hold no reference."""
    parts = re.split(r"\{\{\$(.*?)\}\}", text)
    return "".join(reference(part) if index % 2 else literal(part, where) for index, part in enumerate(parts))
