"""A pipeline as a small typed DAG, all that an engine needs to know: its steps in one flat level, the values they take
and from where, what they wait for and on which conditions they run.
"""

from __future__ import annotations

import contextlib
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stereo_core.errors import SpecError
from stereo_core.spec import text as yaml_text
from stereo_core.values import near, with_integers


class GraphError(SpecError):
    """A pipeline that can not be read or run here, or arguments that do not fit it."""


@contextlib.contextmanager
def malformed() -> Iterator[None]:
    """What wrong types in the IR make of the code inside is a GraphError: the readers go by what KFP's compiler writes,
    and do not look at each value's type."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise GraphError(f"malformed PipelineSpec: {type(error).__name__}: {error}") from None


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
    """A value in which the texts hold placeholders `{{$.inputs.parameters['NAME']}}` for the sources of `inputs`."""

    value: object
    inputs: dict[str, Source]


@dataclass(frozen=True)
class OneOf:
    """The first of these outputs whose task has run (dsl.OneOf)."""

    options: tuple[Output, ...]


@dataclass(frozen=True)
class Collected:
    """The same output of a loop's rounds, as a list, of those that have run (dsl.Collected)."""

    rounds: tuple[Source, ...]


@dataclass(frozen=True)
class FinalStatus:
    """What became of a group of tasks, for its exit handler (dsl.PipelineTaskFinalStatus)."""

    group: str
    tasks: tuple[str, ...]


Source = Constant | Argument | Output | Filled | OneOf | Collected | FinalStatus


def outputs_in(source: Source) -> set[Output]:
    """The tasks' outputs that a source may take."""
    match source:
        case Output():
            return {source}
        case Filled(inputs=inputs):
            return set().union(*map(outputs_in, inputs.values()))
        case OneOf(options=parts) | Collected(rounds=parts):
            return set().union(*map(outputs_in, parts))
    return set()


_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Comparison:
    """`left operator right`, or that it does not hold (`negated`, in dsl.Elif and dsl.Else); so NaN goes to Else."""

    left: Source
    operator: str
    right: Source
    negated: bool = False
    text: str = ""  # as the pipeline has it, for the reader

    def holds(self, value: Callable[[Source], object]) -> bool:
        """With `value` giving what a source stands for.

        Raises:
            GraphError: the two can not be compared.
        """
        left, right = value(self.left), value(self.right)
        try:
            return _COMPARE[self.operator](left, right) != self.negated
        except TypeError:
            raise GraphError(f"condition {self.text}: {left!r} and {right!r} can not be compared") from None


@dataclass(frozen=True)
class Parameter:
    """A typed value; `type` is the IR's: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT."""

    name: str
    type: str
    required: bool = True
    default: object = None
    description: str = ""


@dataclass(frozen=True)
class Port:
    """An artifact that goes in or comes out, or a list of them."""

    name: str
    type: dict
    required: bool = True
    description: str = ""
    many: bool = False


LAUNCHER = "depth_net-launch"  # what images of this library run; it reads a long message from a file, given as @FILE
LONGEST = 128 * 1024 - 1  # bytes of one argument that Linux passes to a command (MAX_ARG_STRLEN)


@dataclass(frozen=True)
class Container:
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    accelerators: int = 0
    resources: dict = field(default_factory=dict)  # as the IR has them: resourceCpuLimit, accelerator, ...


@dataclass(frozen=True)
class Importer:
    """Makes an artifact of a URI: a constant, or the task's own parameter of that name."""

    uri: Source
    metadata: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Retry:
    """How often a failed task runs again, and how many seconds it waits before."""

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
    """A step; it runs when all tasks in `after` have succeeded, or were left out by their own conditions, when those in
    `behind` have ended, however, and when all of `when` hold. An `exit` handler runs after a cancelled run too."""

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
    cache_key: str = ""  # of the pipeline's own choice, for Kubeflow's cache
    retry: Retry = Retry()
    timeout: float | None = None
    platform: dict = field(default_factory=dict)  # the executor's section of the Kubernetes platform document

    @property
    def imported(self) -> Source | None:
        """Where the URI of an importer comes from; None of another task."""
        executor = self.component.executor
        if not isinstance(executor, Importer):
            return None
        return self.parameters[executor.uri.name] if isinstance(executor.uri, Argument) else executor.uri


@dataclass(frozen=True)
class Pipeline:
    """Tasks in an order in which each comes after all that it needs."""

    name: str
    description: str
    parameters: dict[str, Parameter]
    tasks: dict[str, Task]
    loops: frozenset[str] = frozenset()  # parameters whose items make the tasks: see `unrolled`
    spec: dict = field(default_factory=dict, repr=False)  # the IR that it was read from,
    platform: dict = field(default_factory=dict, repr=False)  # and its platform document,
    config: dict = field(default_factory=dict)  # of which this is what is said about the whole run, as it has it

    def comes_after(self, task: Task) -> set[str]:
        """The tasks that a picture joins with this one: of those that it is behind, the last ones."""
        earlier = set().union(*(self.tasks[name].after | self.tasks[name].behind for name in task.behind))
        return set(task.after | (task.behind - earlier))

    def arguments(self, given: dict[str, object], complete: bool = True) -> dict[str, object]:
        """Defaults completed by `given`; values are checked against their types.

        Unless all must be there (`complete`), a parameter without a value is left out.

        Raises:
            GraphError: an unknown or missing parameter, or a value of another type.
        """
        complaints = [self.unknown(name) for name in given if name not in self.parameters]
        complaints += filter(None, [self.missing(given) if complete else ""])
        if complaints:
            raise GraphError("\n".join(complaints))
        values = {p.name: p.default for p in self.parameters.values() if not p.required} | given
        return {name: typed(self.parameters[name], value) for name, value in values.items()}

    def unknown(self, name: str) -> str:
        """What is said of a parameter that there is not."""
        meant = near(name, self.parameters)
        hint = f"did you mean {meant}?" if meant else f"known: {', '.join(sorted(self.parameters)) or 'none'}"
        return f"pipeline {self.name}: unknown parameter {name}; {hint}"

    def missing(self, given: dict[str, object]) -> str:
        """What is said of required parameters that are not given; empty where all are."""
        names = [p.name for p in self.parameters.values() if p.required and p.name not in given]
        return f"pipeline {self.name}: parameters without a value: {', '.join(names)}" if names else ""


# ---- values

PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")


def filled(value: object, inputs: dict[str, object], inside: bool = False) -> object:
    """`value` with its placeholders replaced; one that is a whole text in a mapping or list keeps the input's type."""
    if isinstance(value, dict):
        return {key: filled(item, inputs, inside=True) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, inputs, inside=True) for item in value]
    if not isinstance(value, str):
        return value
    whole = PLACEHOLDER.fullmatch(value)
    return inputs[whole[1]] if whole and inside else PLACEHOLDER.sub(lambda match: as_text(inputs[match[1]]), value)


def as_text(value: object) -> str:
    """Text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


READERS = {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool, "STRING": str, "LIST": list, "STRUCT": dict}
READERS["TASK_FINAL_STATUS"] = dict
_WANTED = {
    "NUMBER_INTEGER": "an integer",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a list",
    "STRUCT": "a mapping",
    "TASK_FINAL_STATUS": "a mapping",
}


def typed(parameter: Parameter, value: object) -> object:
    """`value`, whose whole numbers are integers (`with_integers`), as the parameter's type.

    Raises:
        GraphError: the value is of another type.
    """
    if parameter.type == "NUMBER_DOUBLE" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = READERS[parameter.type]
    if value is None and not parameter.required:
        return None
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise GraphError(f"parameter {parameter.name}: {_WANTED[parameter.type]} is wanted, not {value!r}")
    return value


def parse(parameter: Parameter, text: str, source: str = "value") -> object:
    """A value typed on a command line: text as it is, everything else as YAML (so also JSON), as specs are read.

    Raises:
        GraphError: the text is no such value; names the parameter, and where in `source` it is no YAML.
    """
    if parameter.type == "STRING":
        return text
    try:
        value = with_integers(yaml_text.parse(text, source))
    except SpecError as error:
        raise GraphError(f"parameter {parameter.name}: {error}") from None
    return typed(parameter, as_number(parameter, value))


def as_number(parameter: Parameter, value: object) -> object:
    """The number that a text such as 010 or 1e-4 is, which the reader left as it was written, where one is wanted."""
    found = yaml_text.number(value) if parameter.type.startswith("NUMBER") and isinstance(value, str) else None
    return value if found is None else found
