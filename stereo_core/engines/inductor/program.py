"""The program of an engine with several compiled parts: a list of calls, each with its inputs and outputs.

Values are numbered: 0 is the batch of left and right images; then follow the outputs of each call. A call runs in one
of two streams of a GPU. The build decides which calls it waits for, and which values are no longer needed after it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

Part = Callable[[list[Any]], list[Any]]
"""Tensors -> tensors."""


@dataclass(frozen=True)
class Call:
    """One call of a part.

    Attributes:
        part: name of the part.
        inputs: (number, first, end): rows of a value, along the batch, that it reads.
        outputs: numbers of the values that it computes.
        side: whether it runs in the second stream, in parallel with the others.
        waits: indices of calls of the other stream that must finish first.
        dropped: values whose memory may be reused once this call is queued.
    """

    part: str
    inputs: tuple[tuple[int, int, int], ...]
    outputs: tuple[int, ...]
    side: bool = False
    waits: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """Calls in order; the disparity is value `result`."""

    calls: tuple[Call, ...]
    result: int

    def to_json(self) -> str:
        return json.dumps({"calls": [asdict(call) for call in self.calls], "result": self.result})

    @classmethod
    def from_json(cls, text: str) -> Program:
        fields = json.loads(text)
        calls = (Call(**{key: _frozen(value) for key, value in call.items()}) for call in fields["calls"])
        return cls(tuple(calls), fields["result"])


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def scheduled(calls: Sequence[Call], result: int) -> Program:
    """The program of `calls`, whose `waits` and `dropped` are still empty.

    A value's memory belongs to the stream that computed it. If the other stream reads it, it is dropped only after its
    own stream has waited for that read.
    """
    maker = {value: place for place, call in enumerate(calls) for value in call.outputs}
    last_read: dict[int, dict[bool, int]] = {}
    for place, call in enumerate(calls):
        for value in (*_read(call), *call.outputs):
            last_read.setdefault(value, {})[call.side] = place
    alive = set(maker) - {result}
    waited = {False: -1, True: -1}  # the latest call of the other stream that a stream has waited for
    done = []
    for place, call in enumerate(calls):
        others = [maker[v] for v in _read(call) if v in maker and calls[maker[v]].side != call.side]
        waits = [max(others)] if others and max(others) > waited[call.side] else []
        waited[call.side] = max([waited[call.side], *waits])

        def is_over(value: int, now: int = place) -> bool:
            home = calls[maker[value]].side
            reads = last_read[value]
            return max(reads.values()) <= now and reads.get(not home, -1) <= waited[home]

        dropped = sorted(filter(is_over, alive))
        alive -= set(dropped)
        done.append(Call(call.part, call.inputs, call.outputs, call.side, tuple(waits), tuple(dropped)))
    return Program(tuple(done), result)


def _read(call: Call) -> list[int]:
    return [value for value, _, _ in call.inputs]


def execute(program: Program, parts: dict[str, Part], images: Any, streams: Streams | None = None) -> Any:
    """Run the calls in order, on a GPU in `streams`; return the disparity."""
    values = {0: images}
    awaited = {place for call in program.calls for place in call.waits}
    events: dict[int, Any] = {}
    for place, call in enumerate(program.calls):
        inputs = [values[number][first:end] for number, first, end in call.inputs]
        if streams is None:
            outputs = parts[call.part](inputs)
        else:
            with streams.on(call.side):
                streams.wait([events[other] for other in call.waits])
                outputs = parts[call.part](inputs)
                if place in awaited:
                    events[place] = streams.mark()
        values.update(zip(call.outputs, outputs, strict=True))
        del inputs, outputs
        for number in call.dropped:
            del values[number]
    return values[program.result]


class Streams:
    """The current stream of a GPU and a second one that starts after it; call `join` before using the results."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self.main = torch.cuda.current_stream()
        self.side = torch.cuda.Stream()
        self.side.wait_stream(self.main)

    def on(self, side: bool) -> AbstractContextManager[Any]:
        return self._cuda.stream(self.side if side else self.main)

    def wait(self, events: list[Any]) -> None:
        for event in events:
            self._cuda.current_stream().wait_event(event)

    def mark(self) -> Any:
        return self._cuda.current_stream().record_event()

    def join(self) -> None:
        self.main.wait_stream(self.side)
