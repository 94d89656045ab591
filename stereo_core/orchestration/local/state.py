"""The shared state of a run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stereo_core.orchestration.dag import Pipeline
from stereo_core.orchestration.digests import Digests
from stereo_core.orchestration.local.machine import Machine
from stereo_core.orchestration.local.plan import Plan
from stereo_core.orchestration.record import Record


@dataclass
class State:
    """Change the record only through `change`, or while holding `lock`. Setting `stop` ends the running tasks."""

    pipeline: Pipeline
    record: Record
    before: Record  # of the earlier run in the folder
    plan: Plan
    machine: Machine
    digests: Digests
    on_change: Callable[[Record], None]
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def change(self, name: str | None = None, **values: Any) -> None:
        """Set fields of a task's record, write run.json and call the listener."""
        with self.lock:
            if name is not None:
                for key, value in values.items():
                    setattr(self.record.tasks[name], key, value)
            self.record.write()
            self.on_change(self.record)

    def empty(self, name: str) -> None:
        """Remove a task's folder. The record is changed first, so that it never lists files that are gone."""
        self.change(name, key="", made=False, parameters={}, artifacts={})
        shutil.rmtree(self.record.place(name), ignore_errors=True)
