"""A task's values and conditions as Argo texts, references `{{...}}` and expressions `{{=...}}`.

On Argo every value is a text: texts stay unchanged, everything else becomes JSON.
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

STATUS = {  # status of an exit handler's block; on Argo that is the whole Workflow
    "state": "{{=workflow.status == 'Succeeded' ? 'SUCCEEDED' : 'FAILED'}}",
    "pipelineJobResourceName": "{{workflow.name}}",
}

_IN_WORDS = {
    Collected: "the list of a loop's outputs (dsl.Collected)",
    Filled: "a value that contains other values",
    FinalStatus: "the final status (dsl.PipelineTaskFinalStatus)",
}


class Values:
    """The values of a pipeline's tasks. `where` names the place in error messages.

    Raises:
        GraphError: a text with braces that Argo would replace, or a value that its expressions cannot express.
    """

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def text(self, source: Source, where: str) -> str:
        """A parameter's value as text, which may contain references."""
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
        """The value as JSON."""
        if isinstance(source, Constant):
            return literal(json.dumps(source.value), where)
        if self.type_of(source) != "STRING":
            return self.text(source, where)
        return f"{{{{=toJson({self.expression(source, where)})}}}}"

    def _filled(self, value: object, inputs: dict[str, Source], where: str, inside: bool = False) -> str:
        """Like `dag.filled`; texts inside a mapping or list become JSON."""
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
        text: str, literal: Callable[..., Any], taken: Callable[..., Any], inputs: dict[str, Source], where: str
    ) -> list[str]:
        parts = PLACEHOLDER.split(text)
        found = [taken(inputs[part], where) if index % 2 else literal(part) for index, part in enumerate(parts)]
        return [result for result, part in zip(found, parts, strict=True) if part]

    def expression(self, source: Source, where: str) -> str:
        """An expression that evaluates to the text of `text`."""
        match source:
            case Constant(value=value):
                return quoted(as_text(value), where)
            case Argument(name=name):
                return f"workflow.parameters['{name}']"
            case Output(task=task, key=key):
                return f"tasks['{task}'].outputs.parameters['{key}']"
            case OneOf(options=options):
                return first_that_ran(options, lambda option: self.expression(option, where))
        raise GraphError(
            f"{where}: {_IN_WORDS[type(source)]} cannot be part of an Argo expression; compute the value in a step and "
            "use its output"
        )

    def type_of(self, source: Source) -> str:
        """The type in the IR: STRING, NUMBER_INTEGER, ..."""
        match source:
            case Argument(name=name):
                return self.pipeline.parameters[name].type
            case Output(task=task, key=key):
                return self.pipeline.tasks[task].component.output_parameters[key].type
            case OneOf(options=options):
                return self.type_of(options[0])
        return "STRING" if isinstance(source, Constant | Filled) else "LIST"

    def condition(self, tests: tuple[Comparison, ...], where: str) -> str | None:
        """All of `tests` as one expression. It stops at the first false test, because later values may not exist."""
        if not tests:
            return None
        return f"{{{{={' && '.join(self._comparison(test, where) for test in tests)}}}}}"

    def _comparison(self, test: Comparison, where: str) -> str:
        text = f"({self._typed(test.left, where)} {test.operator} {self._typed(test.right, where)})"
        return f"!{text}" if test.negated else text

    def _typed(self, source: Source, where: str) -> str:
        if isinstance(source, Constant) and not isinstance(source.value, str):
            return json.dumps(source.value)
        expression, kind = self.expression(source, where), self.type_of(source)
        if kind in ("LIST", "STRUCT"):
            raise GraphError(
                f"{where}: Argo does not support a condition on a list or a mapping; compare a text, a number, true or "
                "false"
            )
        casts = {"NUMBER_INTEGER": "asInt({})", "NUMBER_DOUBLE": "asFloat({})", "BOOLEAN": "({} == 'true')"}
        return casts.get(kind, "{}").format(expression)


def first_that_ran(options: tuple[Output, ...], expression: Callable[[Output], str]) -> str:
    """An expression for dsl.OneOf: `expression` of the first option whose task has run."""
    *others, last = options
    chosen = (f"tasks['{option.task}'].status == 'Succeeded' ? {expression(option)} : " for option in others)
    return "".join(chosen) + expression(last)


def text_of(value: object, where: str) -> str:
    """A value as text for an Argo parameter: text unchanged, everything else as JSON."""
    return literal(as_text(value), where)


def literal(text: str, where: str) -> str:
    """`text` unchanged; refused if Argo would find a reference in it."""
    if "{{" in text:
        raise GraphError(f"{where}: Argo would read {{{{ in {text[:60]!r} as a reference; write the text without {{{{")
    return text


def quoted(text: str, where: str) -> str:
    """A text as a literal inside an expression."""
    if "}}" in text:
        raise GraphError(
            f"{where}: Argo would read }}}} in {text[:60]!r} as the expression's end; write it without }}}}"
        )
    return literal(json.dumps(text, ensure_ascii=False), where)


def substituted(text: str, reference: Callable[[str], str], where: str) -> str:
    """`text` with every {{$...}} of KFP replaced; the rest must contain no Argo reference."""
    parts = re.split(r"\{\{\$(.*?)\}\}", text)
    return "".join(reference(part) if index % 2 else literal(part, where) for index, part in enumerate(parts))
