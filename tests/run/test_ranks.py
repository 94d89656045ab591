"""Several processes of one node: how they begin, and that they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stereo_core.errors import DataError, GpuError
from stereo_core.run import ranks
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import StatusLog
from stereo_core.run.termination import Terminated
from stereo_core.training.distribution import Ranks

TWO = Ranks((0, 0))


class Unportable(Exception):
    """Can be pickled, and not unpickled: it needs two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def say_who(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    (folder / str(ranks.rank)).write_text(f"{ranks.local} of {len(ranks.devices)}, port {ranks.port}")
    status.running(f"rank {ranks.rank}")
    return Outcome(f"from rank {ranks.rank}")


class DistBackendError(Unportable):
    """As torch's, were it not portable: told by its name alone."""


UNPORTABLE = {"one": Unportable, "gpu": DistBackendError}


def second_fails(error: BaseException | str, status: StatusLog, ranks: Ranks) -> Outcome:
    if ranks.rank == 1 and error in UNPORTABLE:
        raise UNPORTABLE[error](error, "two")
    if ranks.rank == 1:
        raise error
    time.sleep(600)


def second_is_killed(_, status: StatusLog, ranks: Ranks) -> Outcome:
    if ranks.rank == 1:
        if os.fork() == 0:  # as a loader's worker it holds the pipes of the process open
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def wait_for_sigterm(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    try:
        (folder / f"{ranks.rank}.{os.getpid()}").touch()
        time.sleep(600)
    finally:
        (folder / f"{ranks.rank}.ended").touch()


def test_every_rank_does_its_part(tmp_path):
    status = StatusLog(tmp_path)
    assert in_ranks(say_who, tmp_path, status, TWO).message == "from rank 0"
    first, second = (tmp_path / "0").read_text(), (tmp_path / "1").read_text()
    assert first.startswith("0 of 2, port ") and second == first.replace("0 of 2", "1 of 2")
    assert int(first.split()[-1]) > 0
    lines = (tmp_path / "status.json").read_text().splitlines()
    assert len(lines) == 1 and '"rank 0"' in lines[0]


def test_one_rank_alone_is_this_process(tmp_path):
    in_ranks(say_who, tmp_path, StatusLog(None), Ranks((0,)))
    assert (tmp_path / "0").read_text() == "0 of 1, port 0"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("left.png: broken"), DataError, "left.png: broken"),
        ("one", RuntimeError, "Unportable: onetwo"),
        ("gpu", GpuError, "DistBackendError: gputwo"),
    ],
)
def test_the_first_error_ends_all(error, kind, message, monkeypatch):
    monkeypatch.setattr(ranks, "_GRACE_SECONDS", 0.2)
    with pytest.raises(kind, match=message) as caught:
        in_ranks(second_fails, error, StatusLog(None), TWO)
    assert "in second_fails" in caught.value.__notes__[0]


def test_wrong_input_of_one_rank_ends_all_at_once():
    """What the others do, such as their part of a long list, is in vain."""
    before = time.monotonic()
    with pytest.raises(DataError):
        in_ranks(second_fails, DataError("left.png: broken"), StatusLog(None), TWO)
    assert time.monotonic() - before < ranks._GRACE_SECONDS


def test_a_killed_rank_ends_all(monkeypatch):
    monkeypatch.setattr(ranks, "_GRACE_SECONDS", 0.2)
    with pytest.raises(RuntimeError, match=r"the process of rank 1 \(pid \d+\) was killed by SIGKILL"):
        in_ranks(second_is_killed, None, StatusLog(None), TWO)


def _until(condition) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_goes_to_every_rank(tmp_path, number, raised):
    def stop():
        _until(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(raised):
        in_ranks(wait_for_sigterm, tmp_path, StatusLog(None), TWO)
    assert {"0.ended", "1.ended"} <= {path.name for path in tmp_path.iterdir()}
    assert signal.getsignal(number) == before


def test_ranks_do_not_outlive_their_parent(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_ranks import *\n"
        f"if __name__ == '__main__': in_ranks(wait_for_sigterm, Path({str(tmp_path)!r}), StatusLog(None), TWO)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    _until(lambda: len(list(tmp_path.glob("?.*"))) == 2)
    parent.kill()
    parent.wait()
    pids = [int(path.suffix[1:]) for path in tmp_path.glob("?.*")]
    assert len(pids) == 2

    def gone(pid: int) -> bool:
        return not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()

    _until(lambda: all(map(gone, pids)))
    assert all(map(gone, pids))
