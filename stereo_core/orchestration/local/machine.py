"""The machine's resources for steps: GPUs, commands, or containers of their images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from stereo_core.orchestration.dag import Container, GraphError, Task
from stereo_core.orchestration.podman import Containers

GPUS = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs in CUDA_VISIBLE_DEVICES; if it is not set, all GPUs that nvidia-smi lists."""
    visible = os.environ.get(GPUS)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True)
    return [] if found.returncode else [index for index in found.stdout.split() if index.isdigit()]


def search_path() -> str:
    """The search path for commands: this Python environment first."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


@dataclass(frozen=True)
class Machine:
    """`containers` runs the steps; if it is None, they run as processes with their commands on `path`."""

    containers: Containers | None = None
    gpus: list[str] = field(default_factory=visible_gpus)
    path: str = field(default_factory=search_path)

    @property
    def runner(self) -> str:
        return self.containers.engine if self.containers else "process"

    def gpus_for(self, task: Task) -> int:
        """The number of GPUs that a task gets exclusively; 0 on a machine without GPUs."""
        executor = task.component.executor
        return executor.accelerators if self.gpus and isinstance(executor, Container) else 0

    def check(self, task: Task) -> None:
        """Raises:
        GraphError: the task requests GPUs, an image or a command that this machine does not have.
        """
        container = task.component.executor
        if not isinstance(container, Container):
            return
        if container.accelerators > len(self.gpus) and os.environ.get(GPUS) != "":
            wanted, here = container.accelerators, len(self.gpus)
            raise GraphError(
                f"task {task.name}: it requests {wanted} GPU{'s' * (wanted != 1)}, but {here} are visible here; set"
                f" {GPUS}= (empty) to run all steps without GPUs, or compile the pipeline with another profile"
            )
        if self.containers:
            return self.containers.check(task, container)
        command = (*container.command, *container.args)[0]
        if shutil.which(command, path=self.path) is None:
            raise GraphError(
                f"task {task.name}: the command {command} of image {container.image} is not installed here;"
                " install it, or run the pipeline on a cluster"
            )
