"""A trial: `depth_net train` in its own process, watched through its status.json."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stereo_core.errors import ModelError
from stereo_core.files import atomic_path
from stereo_core.models.files import read_sidecar
from stereo_core.run.parameters import set_key
from stereo_core.run.status import both_spellings, read_line
from stereo_core.spec import ExperimentSpec
from stereo_core.spec.choice import BEST, led_to
from stereo_core.spec.train import AUTO
from stereo_core.values import json_ready

SPEC, LOG = "spec.yaml", "log.txt"
_LAUNCHERS = ("WORLD_SIZE", "RANK", "NODE_RANK", "NUM_GPU_PER_NODE", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Slot:
    """The resources of one running trial: a GPU, as named in CUDA_VISIBLE_DEVICES, or a number of CPU threads."""

    gpu: str | None
    threads: int | None

    def environment(self) -> dict[str, str]:
        """This process's environment, changed for one trial: no other GPUs and no variables of a launcher."""
        taken = {name: value for name, value in os.environ.items() if not _of_a_launcher(name)}
        if self.gpu is not None:
            return taken | {"CUDA_VISIBLE_DEVICES": self.gpu}
        return taken | {"OMP_NUM_THREADS": str(self.threads)}


def _of_a_launcher(name: str) -> bool:
    return name in _LAUNCHERS or name.startswith("PET_")


def trial_folder(folder: Path, number: int) -> Path:
    """The results folder of a trial of the search in `folder`."""
    return folder / "trials" / f"{number:03d}"


def train_tree(spec: ExperimentSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """The user's spec with other values at dotted paths, as a spec for `depth_net train`.

    Unset keys and secrets are left out.
    """
    tree: dict[str, Any] = json_ready(
        spec.model_dump(exclude_unset=True, include={"results_dir", "dataset", "model", "train", "wandb"})
    )
    for path, value in values.items():
        set_key(tree, path, value)
    return tree


def trial_tree(spec: ExperimentSpec, folder: Path, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a trial: the user's spec with the trial's values, its own folder, one device and the search's
    epochs. It resumes from its own checkpoint."""
    own, train = spec.automl, spec.train
    settings = {
        "train.results_dir": str(trial_folder(folder, number)),
        "train.resume_training_checkpoint_path": AUTO,
        "train.num_epochs": own.automl_max_epochs,
        "train.monitor": own.metric,
        "train.num_gpus": 1,
        "train.gpu_ids": [0],
        "wandb.name": f"{spec.wandb.name} {number:03d}",
        "wandb.run_id": "",
    }
    if train.checkpoint_interval_unit == "epoch":
        settings["train.checkpoint_interval"] = min(train.checkpoint_interval, own.automl_max_epochs)
    return train_tree(spec, {**values, **settings})


@dataclass
class TrialProcess:
    """The process of one trial, and its validations.

    Args:
        number: the trial's number.
        folder: the trial's folder; a checkpoint in it is resumed.
        metric: the metric to report after each validation.
        lock: file descriptor that the process keeps open while it lives.
    """

    number: int
    folder: Path
    metric: str
    slot: Slot
    lock: int
    process: subprocess.Popen[Any] = field(init=False)
    stop_requested: float | None = None  # time of the request, by time.monotonic()

    def start(self, tree: dict[str, Any]) -> None:
        with atomic_path(self.folder / SPEC) as path:
            path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        self._status = StatusReader(self.folder / "status.json", self.metric)
        command = [sys.executable, "-m", "stereo_core.cli", "train", "-e", str(self.folder / SPEC)]
        with (self.folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.slot.environment(),
                pass_fds=(self.lock,),
                preexec_fn=_belong_to_the_search,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def validations(self) -> Iterator[tuple[int, float]]:
        """The validations since the last call: (finished epochs, metric)."""
        return self._status.validations()

    @property
    def stopping(self) -> bool:
        return self.stop_requested is not None

    def stop(self) -> None:
        """Request that it writes a checkpoint and ends (SIGTERM)."""
        self.stop_requested = self.stop_requested or time.monotonic()
        if not self.ended:
            self.process.send_signal(signal.SIGTERM)

    def insist(self, seconds: float) -> None:
        """Kill it if it still runs this many seconds after `stop`; its last checkpoint counts."""
        if self.stopping and time.monotonic() > (self.stop_requested or 0.0) + seconds:
            self.process.kill()

    def wait(self, seconds: float) -> None:
        """Wait until it ends; after this many seconds kill it, so that its last checkpoint counts."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def reason(self) -> str:
        """Why it failed, in one line."""
        code = self.process.returncode
        if code < 0:
            why = " (the system does this when memory runs out)" if code == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{why}"
        return self._status.failure or f"exit code {code}; see {self.folder / LOG}"


class StatusReader:
    """Reads a training run's status.json while it grows.

    Lines from before belong to an earlier process of the same trial; their validations count too.
    """

    def __init__(self, path: Path, metric: str) -> None:
        self.path, self.metric = path, metric
        self.failure = ""
        self._offset = 0
        self._value: float | None = None  # of a validation whose epoch comes in a later line
        self._known = path.stat().st_size if path.exists() else 0

    def validations(self) -> Iterator[tuple[int, float]]:
        for line in self._lines():
            message = str(line.get("message", ""))
            if message == "Eval metrics generated.":  # not "... generated before training."
                self._value = both_spellings(line["kpi"]).get(self.metric)
            elif isinstance(line.get("epoch"), int):
                if self._value is not None and math.isfinite(self._value):
                    yield line["epoch"] + 1, self._value
                self._value = None
            elif line.get("status") == "FAILURE" and self._offset > self._known:
                self.failure = message

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The new complete lines."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._offset += len(raw)
                if line := read_line(raw):
                    yield line


def best_of(folder: Path, metric: str) -> tuple[Path, dict[str, float]]:
    """The best checkpoint of a trial, and its validation metrics.

    Raises:
        ModelError: there is no checkpoint, or the metric is not finite.
    """
    path = led_to(folder / BEST).resolve()
    metrics = read_sidecar(path).get("metrics", {})
    value = metrics.get(metric)  # None where it was not finite
    if not path.is_file() or value is None or not math.isfinite(value):
        raise ModelError(f"{folder}: no checkpoint with a finite {metric}; see log.txt there")
    return path, metrics


_LIBC = ctypes.CDLL(None)


def _belong_to_the_search() -> None:
    """Set up the new process: ignore Ctrl-C (the search handles it), and get SIGTERM if the search dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
