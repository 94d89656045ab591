"""Where credentials may come from, each used against a real server; and that nothing of them is told."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from objects import put, written

from stereo_core import storage
from stereo_core.errors import DataError

pytestmark = [pytest.mark.service, pytest.mark.timeout(60)]
SECRET = "not-this-one"


@pytest.fixture
def uri(store, monkeypatch) -> str:
    """An object, and nothing in the environment that gives the right to read it."""
    uri = put(store, "guarded", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr(storage.CLIENTS, "patience", replace(storage.CLIENTS.patience, instance=0.1))
    return uri


def test_minio_variables(uri, monkeypatch):
    monkeypatch.setenv("MINIO_ACCESS_KEY", "K")
    monkeypatch.setenv("MINIO_SECRET_KEY", "S")
    assert storage.read(uri) == b"x"


def test_a_file_and_its_profiles(uri, tmp_path, monkeypatch):
    lines = "[default]\naws_access_key_id = no\naws_secret_access_key = no\n"
    lines += "[work]\naws_access_key_id = K\naws_secret_access_key = S\n"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(written(tmp_path / "credentials", lines.encode())))
    with pytest.raises(DataError, match="access denied"):
        storage.read(uri)
    monkeypatch.setenv("AWS_PROFILE", "work")
    storage.CLIENTS.forget()
    assert storage.read(uri) == b"x"


class _Giver(BaseHTTPRequestHandler):
    """Gives credentials for a token: as STS, and as the service of a container's role."""

    asked: list[dict]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        query = {name: values[0] for name, values in parse_qs(body or urlsplit(self.path).query).items()}
        self.asked.append(query)
        keys = "<AccessKeyId>K</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken></SessionToken>"
        given = f"<Credentials>{keys}<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
        result = f"<AssumeRoleWithWebIdentityResult>{given}</AssumeRoleWithWebIdentityResult>"
        space = 'xmlns="https://sts.amazonaws.com/doc/2011-06-15/"'
        text = f"<AssumeRoleWithWebIdentityResponse {space}>{result}</AssumeRoleWithWebIdentityResponse>"
        self._send(200 if query["WebIdentityToken"] == "token" else 403, text)

    def do_GET(self) -> None:
        self.asked.append({"authorization": self.headers["Authorization"]})
        expiry = {"Token": "", "Expiration": "2099-01-01T00:00:00Z"}
        self._send(200, json.dumps({"AccessKeyId": "K", "SecretAccessKey": "S", **expiry}))

    def _send(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def giver():
    """URL of a server that gives credentials, and what it was asked."""
    _Giver.asked = []
    with HTTPServer(("127.0.0.1", 0), _Giver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", _Giver.asked
        server.shutdown()


def test_a_service_account(uri, giver, tmp_path, monkeypatch):
    """Web identity, as Kubernetes gives it to a pod of a service account with a role."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", giver[0])
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/trainer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(DataError, match=r"AWS_WEB_IDENTITY_TOKEN_FILE=.*token: no such file"):
        storage.read(uri)
    written(tmp_path / "token", b"old")
    with pytest.raises(DataError, match="no credentials found"):
        storage.read(uri)
    written(tmp_path / "token", b"token")
    assert storage.read(uri) == b"x"
    assert giver[1][-1]["Action"] == "AssumeRoleWithWebIdentity"
    assert giver[1][-1]["RoleArn"] == "arn:aws:iam::1:role/trainer"


def test_the_role_of_a_container(uri, giver, monkeypatch):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{giver[0]}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod")
    assert storage.read(uri) == b"x"
    assert giver[1] == [{"authorization": "pod"}]


def test_none_at_all(uri):
    with pytest.raises(DataError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        storage.read(uri)


def test_a_file_that_is_none_is_not_quoted(uri, tmp_path, monkeypatch):
    path = written(tmp_path / "credentials", f"aws_secret_access_key = {SECRET}\n".encode())
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    with pytest.raises(DataError, match="cannot read the credentials file") as told:
        storage.read(uri)
    assert SECRET not in str(told.value)


def test_nothing_of_them_is_written_anywhere(uri, tmp_path, monkeypatch):
    """Neither by a run that is refused nor by one that is not: output, status, resolved spec."""
    line = "import logging; logging.basicConfig(level=logging.DEBUG); from stereo_core.cli import main; main()"
    said = ""
    for number, (key, secret) in enumerate((("unknown-key", SECRET), ("K", SECRET), ("K", "S"))):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "" if secret == "S" else "token-of-now")
        spec = [f"export.checkpoint={uri}", f"export.onnx_file={uri}.onnx", f"results_dir={tmp_path}/out{number}"]
        ended = subprocess.run([sys.executable, "-c", line, "export", *spec], capture_output=True, text=True)
        assert ended.returncode == 2 and ("access denied" in ended.stderr) == (secret != "S"), ended.stderr
        said += ended.stdout + ended.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"status.json", "experiment.yaml"} <= {path.name for path in files}
    said += "".join(Path(path).read_text(errors="replace") for path in files)
    for word in ("unknown-key", SECRET, "token-of-now", "Signature=", "Authorization"):
        assert word not in said
