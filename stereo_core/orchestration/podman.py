"""Runs tasks of the local engine in containers of podman or docker, as restricted as on a cluster.

A container sees only its inputs (read-only) and its task folder (read-write), at the same paths as here, and an empty
/tmp. The root file system is read-only, there are no capabilities, and there is no network unless the step gets a URI
of object storage. It runs as the current user, or as `nobody` if that is root; in the end its files belong to the
current user. The image must exist locally. Nothing is pulled, because a name that was never built here could belong to
somebody else in a public registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_core.orchestration.dag import Container, GraphError, Task
from stereo_core.storage import REFERENCE, SCHEMES

NOBODY = 65534  # user ID for the steps if the current user is root
SHARED = "1g"  # size of /dev/shm if the hardware profile sets none
PATIENCE = "1"  # seconds between SIGTERM and SIGKILL for a container whose client is gone
LABEL = "stereo-pipelines.run"
TERMINATION = "/dev/termination-log"
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # variables passed into the container
STORAGE = ("AWS_", "S3_", "MINIO_")  # prefixes of further variables passed if the step may use the network
FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE", "SSL_CERT_FILE")  # the files these name, too


class Containers:
    """Starts tasks in containers with `engine`, podman or docker.

    Raises:
        GraphError: the engine is not installed.
    """

    def __init__(self, engine: str):
        if shutil.which(engine) is None:
            raise GraphError(f"--runner {engine}: {engine} is not installed here; install it, or leave --runner out")
        self.engine = engine

    def check(self, task: Task, container: Container) -> None:
        """Raises:
        GraphError: the image does not exist on this machine, or the engine does not answer.
        """
        found = subprocess.run([self.engine, "image", "inspect", container.image], capture_output=True, text=True)
        if found.returncode:
            alive = subprocess.run([self.engine, "ps"], capture_output=True, text=True)
            if alive.returncode:
                raise GraphError(
                    f"--runner {self.engine}: {self.engine} does not answer ({_last_line(alive.stderr)}); start it, or "
                    "leave --runner out"
                )
            raise GraphError(
                f"task {task.name}: {self.engine} has no image {container.image} here ({_last_line(found.stderr)});"
                f" build it (make image-cpu), or pull it: {self.engine} pull {container.image}"
            )

    @contextlib.contextmanager
    def container(
        self, task: Task, command: list[str], place: Path, message: dict[str, Any], gpus: list[str]
    ) -> Iterator[list[Any]]:
        """The command line that runs `command` in a container. The container is removed at the end.

        Args:
            place: The task's folder, with the file termination-log.
            message: The ExecutorInput.
            gpus: The GPUs that the container gets.
        """
        name = f"stereo-pipelines-{uuid.uuid4().hex[:12]}"
        (place / "termination-log").write_bytes(b"")
        if not os.getuid():
            _give(place, NOBODY)
        try:
            yield [
                *(self.engine, "run", "--name", name, "--label", f"{LABEL}={place.parents[1]}"),
                *self._walls(),
                *self._mounts(place, message),
                *self._network(message),
                *self._devices(gpus),
                *("--shm-size", _shared_memory(task), "--pull", "never"),
                *(f"--env={name}={value}" for name, value in task.container.env.items()),
                *(f"--env={name}" for name in THREADS if name in os.environ),
                *("--entrypoint", command[0], task.container.image, *command[1:]),
            ]
        finally:
            self._remove(name)
            if not os.getuid():
                _give(place, 0)

    def end_leftovers(self, folder: Path) -> None:
        """Remove the containers that a killed run left behind."""
        listing = [self.engine, "ps", "--all", "--quiet", "--filter", f"label={LABEL}={folder}"]
        self._remove(*subprocess.run(listing, capture_output=True, text=True).stdout.split())

    def _remove(self, *names: str) -> None:
        if names:
            subprocess.run([self.engine, "rm", "--force", "--volumes", *names], capture_output=True)

    def _walls(self) -> list[str]:
        user = f"{os.getuid() or NOBODY}:{os.getgid()}"
        return [
            *("--user", user, "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
            *("--stop-timeout", PATIENCE, "--log-driver=none", "--no-healthcheck"),
            *(["--userns=keep-id"] if self.engine == "podman" and os.getuid() else []),
        ]

    def _mounts(self, place: Path, message: dict[str, Any]) -> list[str]:
        inputs = {item["uri"] for item in _artifacts(message)}
        mounts = [f"type=bind,src={path},dst={path},ro" for path in sorted(inputs)]
        mounts += [
            f"type=bind,src={place},dst={place}",
            f"type=bind,src={place / 'termination-log'},dst={TERMINATION}",
        ]
        if not os.getuid():  # an image's /root is readable only by root, which would hide mounts below it
            mounts.append("type=tmpfs,dst=/root,tmpfs-mode=0755")
        return [f"--mount={mount}" for mount in ("type=tmpfs,dst=/tmp,tmpfs-mode=1777", *mounts)]

    def _network(self, message: dict[str, Any]) -> list[str]:
        if not _reads_storage(message):
            return ["--network=none"]
        files = {name: os.path.abspath(os.environ[name]) for name in FILES if os.path.isfile(os.environ.get(name, ""))}
        return [
            *(f"--env={name}" for name in os.environ if name.startswith(STORAGE) and name not in files),
            *(f"--env={name}={path}" for name, path in files.items()),
            *(f"--mount=type=bind,src={path},dst={path},ro" for path in files.values()),
        ]

    def _devices(self, gpus: list[str]) -> list[str]:
        if self.engine == "podman":
            return [f"--device=nvidia.com/gpu={gpu}" for gpu in gpus]
        return [f'--gpus="device={",".join(gpus)}"'] if gpus else []


def reason(place: Path) -> str:
    """The container's termination message with a leading colon; empty if there is none."""
    log = place / "termination-log"
    text = log.read_text(errors="replace").strip() if log.is_file() else ""
    return f": {text}" if text else ""


def _artifacts(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for port in message["inputs"]["artifacts"].values() for item in port["artifacts"]]


def _reads_storage(message: dict[str, Any]) -> bool:
    """Whether a parameter, a spec file or a data set by reference names object storage."""
    text = json.dumps(message["inputs"]["parameterValues"])
    for item in _artifacts(message):
        path = Path(item["uri"])
        if (path / REFERENCE).is_file():
            return True
        if item["name"] == "spec_file" and path.is_file():
            text += path.read_text(errors="replace")
    return any(scheme in text for scheme in SCHEMES)


def _shared_memory(task: Task) -> str:
    """The profile's size of /dev/shm in the engines' notation: 6400m for 6400Mi."""
    sizes = (m["sizeLimit"] for m in task.platform.get("emptyDirMounts", []) if m["mountPath"] == "/dev/shm")
    return next(sizes, SHARED).removesuffix("i").lower()


def _give(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
