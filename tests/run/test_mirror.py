"""Results go to a bucket while a run writes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from buckets import names

from stereo_core import storage
from stereo_core.run import mirror as mirror_module
from stereo_core.run.mirror import Mirror
from stereo_core.storage import transfers

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def test_what_a_run_writes_is_stored_once_and_again_when_it_changed(store, tmp_path):
    uri, folder = f"s3://artifacts/{tmp_path.name}/live", tmp_path / "results"
    mirror = Mirror({folder: uri})
    first, second = folder / "model_epoch_000.pth", folder / "model_epoch_001.pth"
    for path, data in (
        (first, b"1" * 2**20),
        (folder / "log", b"x" * 1000),
        (folder / ".partial", b"x"),
        (folder / ".cache/x", b"x"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "latest").symlink_to(first.name)
    (folder / "outside").symlink_to(Path(__file__))
    mirror.store(growing=True)
    assert storage.read(f"{uri}/outside") == Path(__file__).read_bytes()
    (folder / "outside").unlink()
    storage.remove(f"{uri}/outside")
    assert names(uri) == {"model_epoch_000.pth", "log", "latest"} and storage.read(f"{uri}/latest") == b"1" * 2**20

    def log_after(more: bytes, **how) -> int:
        with (folder / "log").open("ab") as log:
            log.write(more)
        mirror.store(**how)
        return storage.children(uri)["log"].size

    storage.forget()
    assert log_after(b"y" * 100, growing=True) == 1000, "a tenth more is not worth another upload"
    storage.forget()
    assert log_after(b"y" * 200, growing=True) == 1300
    second.write_bytes(b"2" * 10)
    (folder / "latest").unlink()
    (folder / "latest").symlink_to(second.name)
    first.unlink()
    storage.forget()
    assert log_after(b"y") == 1301, "at the end everything"
    assert names(uri) == {"model_epoch_001.pth", "log", "latest"} and storage.read(f"{uri}/latest") == b"2" * 10
    (folder / "log").unlink()
    mirror.store()
    assert "log" in names(uri), "nothing but checkpoints is removed"


def test_a_run_outlives_a_server_that_is_away_for_a_while(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirror_module, "PAUSE", 0.05)
    uri, folder, url = f"s3://artifacts/{tmp_path.name}/away", tmp_path / "results", os.environ["AWS_ENDPOINT_URL"]
    folder.mkdir()
    (folder / "status.json").write_text("started\n")
    mirror = Mirror({folder: uri})
    with mirror.running():
        assert names(uri) == {"status.json"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        (folder / "a").write_text("a")
        while not caplog.records:
            time.sleep(0.05)
        assert "Uploading results failed" in caplog.text and "127.0.0.1" not in caplog.text
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        while names(uri) != {"status.json", "a"}:
            time.sleep(0.05)


def test_an_interrupted_run_does_not_wait_for_a_silent_server(store, proxy, tmp_path, monkeypatch):
    for module in (mirror_module, transfers):
        monkeypatch.setattr(module, "MOMENT", 0.3)
    monkeypatch.setattr(mirror_module, "PAUSE", 0.05)
    folder = tmp_path / "results"
    folder.mkdir()
    mirror = Mirror({folder: f"s3://artifacts/{tmp_path.name}/silent"})
    with pytest.raises(KeyboardInterrupt), mirror.running():
        proxy.pause, proxy.passed = 100, 0
        (folder / "large").write_bytes(bytes(20 * 2**20))
        while not proxy.passed:
            time.sleep(0.01)
        begin = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begin < 5
