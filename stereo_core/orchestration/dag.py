"""A pipeline as a small typed DAG: its steps on one flat level, with their inputs, dependencies and conditions.

The local engine and the Argo writer need nothing else.
"""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stereo_core.errors import SpecError
from stereo_core.spec import text as yaml_text
from stereo_core.values import near, with_integers


class GraphError(SpecError):
    """A pipeline cannot be read or run here, or its arguments are wrong."""


@contextlib.contextmanager
def malformed() -> Iterator[None]:
    """What wrong types in the IR make of the code inside is a GraphError: the readers go by what KFP's compiler writes,
    and do not look at each value's type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise GraphError(
            f"malformed PipelineSpec ({type(error).__name__}: {error}); compile the pipeline again"
        ) from None


@dataclass(frozen=True)
class Constant:
    value: object


@dataclass(frozen=True)
class Argument:
    """The value of a pipeline parameter."""

    name: str


@dataclass(frozen=True)
class Output:
    """An output parameter or output artifact of another task."""

    task: str
    key: str


@dataclass(frozen=True)
class Filled:
    """A value whose texts contain placeholders `{{$.inputs.parameters['NAME']}}` for the sources in `inputs`."""

    value: object
    inputs: dict[str, Source]


@dataclass(frozen=True)
class OneOf:
    """The first of these outputs whose task has run (dsl.OneOf)."""

    options: tuple[Output, ...]


@dataclass(frozen=True)
class Collected:
    """One output of all loop iterations that have run, as a list (dsl.Collected)."""

    rounds: tuple[Source, ...]


@dataclass(frozen=True)
class FinalStatus:
    """The final status of a group of tasks, for its exit handler (dsl.PipelineTaskFinalStatus)."""

    group: str
    tasks: tuple[str, ...]


Source = Constant | Argument | Output | Filled | OneOf | Collected | FinalStatus


def outputs_in(source: Source) -> set[Output]:
    """All task outputs that a source may use."""
    match source:
        case Output():
            return {source}
        case Filled(inputs=inputs):
            return set().union(*map(outputs_in, inputs.values()))
        case OneOf(options=parts) | Collected(rounds=parts):
            return set().union(*map(outputs_in, parts))
    return set()


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Comparison:
    """`left operator right`, or its negation (for dsl.Elif and dsl.Else). So NaN leads to Else."""

    left: Source
    operator: str
    right: Source
    negated: bool = False
    text: str = ""  # the condition as the pipeline writes it, for messages

    def holds(self, value: Callable[[Source], object]) -> bool:
        """Evaluate the comparison; `value` gives the value of a source.

        Raises:
            GraphError: the two values cannot be compared.
        """
        left, right = value(self.left), value(self.right)
        try:
            return _COMPARE[self.operator](left, right) != self.negated
        except TypeError:
            raise GraphError(
                f"condition {self.text}: {left!r} and {right!r} cannot be compared; compare values of one type"
            ) from None


@dataclass(frozen=True)
class Parameter:
    """A typed parameter; `type` is the IR's: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT."""

    name: str
    type: str
    required: bool = True
    default: object = None
    description: str = ""


@dataclass(frozen=True)
class Port:
    """An input or output artifact, or a list of them."""

    name: str
    type: dict[str, Any]
    required: bool = True
    description: str = ""
    many: bool = False


LAUNCHER = "depth_net-launch"  # the command of this library's images; it can read a long message as @FILE
LONGEST = 128 * 1024 - 1  # bytes that Linux allows in one command-line argument (MAX_ARG_STRLEN)


@dataclass(frozen=True)
class Container:
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    accelerators: int = 0
    resources: dict[str, Any] = field(default_factory=dict)  # keys of the IR: resourceCpuLimit, accelerator, ...


@dataclass(frozen=True)
class Importer:
    """Makes an artifact from a URI: a constant, or the task's parameter of that name."""

    uri: Constant | Argument
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retry:
    """How often a failed task is retried, and the waiting time in seconds before each retry."""

    count: int = 0
    backoff: float = 0.0
    factor: float = 2.0
    longest: float = 3600.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 1)."""
        return min(self.longest, self.backoff * self.factor ** (attempt - 1))


@dataclass(frozen=True)
class Component:
    """Signature and executor of a step."""

    executor: Container | Importer
    parameters: dict[str, Parameter]
    artifacts: dict[str, Port]
    output_parameters: dict[str, Parameter]
    output_artifacts: dict[str, Port]


@dataclass(frozen=True)
class Task:
    """A step. It runs when all tasks in `after` have succeeded (or were skipped by their own conditions), all tasks in
    `behind` have ended (successful or not) and all conditions in `when` are true. An `exit` handler also runs after a
    cancelled run."""

    name: str
    title: str
    reference: str  # the component's name in the IR
    component: Component
    parameters: dict[str, Source]
    artifacts: dict[str, Source]
    after: frozenset[str]
    behind: frozenset[str] = frozenset()
    when: tuple[Comparison, ...] = ()
    exit: bool = False
    cache: bool = False
    cache_key: str = ""  # set by the pipeline, for Kubeflow's cache
    retry: Retry = Retry()
    timeout: float | None = None
    platform: dict[str, Any] = field(default_factory=dict)  # the executor's section of the Kubernetes platform document

    @property
    def container(self) -> Container:
        """What it runs; TypeError of a task that imports, which runs nothing."""
        if isinstance(self.component.executor, Importer):
            raise TypeError(f"task {self.name} is an importer: it runs no container")
        return self.component.executor

    @property
    def importer(self) -> Importer:
        """What it imports; TypeError of a task that runs a container."""
        if isinstance(self.component.executor, Container):
            raise TypeError(f"task {self.name} runs a container: it is no importer")
        return self.component.executor

    @property
    def imported(self) -> Source | None:
        """The source of an importer's URI; None for other tasks."""
        executor = self.component.executor
        if not isinstance(executor, Importer):
            return None
        return self.parameters[executor.uri.name] if isinstance(executor.uri, Argument) else executor.uri


@dataclass(frozen=True)
class Pipeline:
    """The tasks, sorted so that each comes after the tasks that it needs."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    tasks: dict[str, Task]
    loops: frozenset[str] = frozenset()  # parameters that loops iterate over: see `unrolled`
    spec: dict[str, Any] = field(default_factory=dict, repr=False)  # the IR
    platform: dict[str, Any] = field(default_factory=dict, repr=False)  # the platform document of the IR
    config: dict[str, Any] = field(default_factory=dict)  # the platform document's settings for the whole run

    def comes_after(self, task: Task) -> set[str]:
        """The tasks in `behind` that a drawing connects with this one: the last ones."""
        earlier = set().union(*(self.tasks[name].after | self.tasks[name].behind for name in task.behind))
        return set(task.after | (task.behind - earlier))

    def arguments(self, given: dict[str, object], complete: bool = True) -> dict[str, object]:
        """The pipeline's arguments: defaults overridden by `given`, checked against their types.

        With `complete`, a parameter without a value is an error; otherwise it is left out.

        Raises:
            GraphError: an unknown or missing parameter, or a value of the wrong type.
        """
        complaints = [self.unknown(name) for name in given if name not in self.parameters]
        complaints += filter(None, [self.missing(given) if complete else ""])
        if complaints:
            raise GraphError("\n".join(complaints))
        values = {p.name: p.default for p in self.parameters.values() if not p.required} | given
        return {name: typed(self.parameters[name], value) for name, value in values.items()}

    def unknown(self, name: str) -> str:
        """The error for an unknown parameter."""
        meant = near(name, self.parameters)
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(sorted(self.parameters)) or 'none'}"
        return f"pipeline {self.name}: unknown parameter {name}; {hint}"

    def missing(self, given: dict[str, object]) -> str:
        """The error for required parameters without a value; empty if there are none."""
        names = [p.name for p in self.parameters.values() if p.required and p.name not in given]
        return (
            f"pipeline {self.name}: parameters without a value: {', '.join(names)}; give each with --param NAME=VALUE"
            if names
            else ""
        )


# ---- values

PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


def filled(value: object, inputs: dict[str, object], inside: bool = False) -> object:
    """`value` with its placeholders replaced. One that is a whole text in a mapping or list keeps its type."""
    if isinstance(value, dict):
        return {key: filled(item, inputs, inside=True) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, inputs, inside=True) for item in value]
    if not isinstance(value, str):
        return value
    whole = PLACEHOLDER.fullmatch(value)
    return inputs[whole[1]] if whole and inside else PLACEHOLDER.sub(lambda match: as_text(inputs[match[1]]), value)


def as_text(value: object) -> str:
    """Text unchanged, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


READERS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRING": str, "LIST": list, "STRUCT": dict}
READERS["TASK_FINAL_STATUS"] = dict
_EXPECTED = {
    "NUMBER_INTEGER": "an integer",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a list",
    "STRUCT": "a mapping",
    "TASK_FINAL_STATUS": "a mapping",
}


def typed(parameter: Parameter, value: object) -> object:
    """`value` converted to the parameter's type; whole numbers must be integers already (`with_integers`).

    Raises:
        GraphError: the value has the wrong type.
    """
    if parameter.type == "NUMBER_DOUBLE" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = READERS[parameter.type]
    if value is None and not parameter.required:
        return None
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise GraphError(f"parameter {parameter.name}: expected {_EXPECTED[parameter.type]}, got {value!r}")
    return value


def parse(parameter: Parameter, text: str, source: str = "value") -> object:
    """Parse a value from the command line: a text parameter takes it unchanged, others read it as YAML (or JSON).

    Raises:
        GraphError: not a value of this type; names the parameter and the place of a YAML error in `source`.
    """
    if parameter.type == "STRING":
        return text
    try:
        value = with_integers(yaml_text.parse(text, source))
    except SpecError as error:
        raise GraphError(f"parameter {parameter.name}: {error}") from None
    return typed(parameter, with_integers(as_number(parameter, value)))


def as_number(parameter: Parameter, value: object) -> object:
    """Convert a text such as 010 or 1e-4, which the YAML reader leaves as text, for a numeric parameter."""
    found = yaml_text.number(value) if parameter.type.startswith("NUMBER") and isinstance(value, str) else None
    return value if found is None else found
