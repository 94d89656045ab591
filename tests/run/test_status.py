"""status.json as TAO's tools read it, in strict JSON, with an end for every way a run can end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import stereo_core.run.perform as performing
from stereo_core.errors import DataError, ExplainedError, ModelError, SpecError
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog, both_spellings
from stereo_core.spec.loading import build
from stereo_core.storage import StorageError
from stereo_core.training.nonfinite import NonFiniteLossError


def lines(folder: Path) -> list[dict]:
    def refuse(token: str):
        raise AssertionError(f"{token} is no JSON")

    text = (folder / "status.json").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


FULL_DISK = """
import os, sys
from pathlib import Path
from stereo_core.run.status import StatusLog
folder = Path(sys.argv[1])
status, filler = StatusLog(folder), (folder / "filler").open("wb", buffering=0)
status.running("a line")  # it takes a block of the disk, which the next ones fill
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
try:
    while True:
        status.running("a line")
except OSError as error:
    print(error)
os.truncate(folder / "filler", 0)
status.failure("the end")
print((folder / "status.json").read_text(), end="")
"""


def test_a_full_disk_cuts_no_line(tmp_path, on_a_small_disk):
    done = on_a_small_disk(tmp_path / "disk", "64k", sys.executable, "-c", FULL_DISK, tmp_path / "disk")
    error, *written = done.stdout.splitlines()
    assert error == f"[Errno 28] No space left on device: '{tmp_path / 'disk' / 'status.json'}'"
    assert [json.loads(line)["message"] for line in written][-2:] == ["a line", "the end"]


def test_the_fields_of_a_line(tmp_path):
    status = StatusLog(tmp_path)
    status.started("Starting Training Loop.")
    status.running("Training loop in progress", epoch=0, step=4, max_epoch=2, eta="0:00:01", kpi={"val_loss": 1.5})
    status.running("again")
    status.success("done", kpi={"epe": 0.5})
    first, second, third, last = lines(tmp_path)
    assert re.fullmatch(r"[1-9]\d?/[1-9]\d?/20\d\d", first["date"]) and re.fullmatch(
        r"(0|[1-9]\d?):(0|[1-9]\d?):(0|[1-9]\d?)", first["time"]
    )
    assert (first["status"], first["verbosity"], first["message"]) == ("STARTED", "INFO", "Starting Training Loop.")
    assert (second["status"], second["epoch"], second["max_epoch"], second["eta"]) == ("RUNNING", 0, 2, "0:00:01")
    assert second["kpi"] == {"val_loss": 1.5, "val/loss": 1.5}
    assert "kpi" not in third and "kpi" not in first
    assert last["status"] == "SUCCESS" and last["kpi"] == {"epe": 0.5, "val/epe": 0.5}


def test_numbers_that_json_does_not_know(tmp_path):
    kpi = {"epe": float("nan"), "d1": float("inf"), "bp1": np.float32(0.25), "bp2": torch.tensor(0.5), "n": np.int64(3)}
    StatusLog(tmp_path).running("x", kpi=kpi, folder=Path("a/b"), sizes=np.array([1.0, np.nan]))
    [line] = lines(tmp_path)
    assert line["kpi"] == {
        "epe": None, "val/epe": None, "d1": None, "val/d1": None, "bp1": 0.25, "val/bp1": 0.25, "bp2": 0.5,
        "val/bp2": 0.5, "n": 3,
    }  # fmt: skip
    assert line["folder"] == "a/b" and line["sizes"] == [1.0, None]


def test_metrics_go_by_both_names_and_other_figures_by_their_own():
    kpi = {"val/epe_pixel": 1.0, "train_loss": 2.0, "latency_ms": 3.0, "epe": 4.0, "val/epe": 5.0}
    assert both_spellings(kpi) == kpi | {"epe_pixel": 1.0}


def test_runs_append_and_text_of_any_script_survives(tmp_path):
    StatusLog(tmp_path).started("eins")
    StatusLog(tmp_path).failure("kaputt: Größe\n日本 \udcff")
    assert [line["message"] for line in lines(tmp_path)] == ["eins", "kaputt: Größe\n日本 \udcff"]


def test_secrets_do_not_reach_the_file(tmp_path):
    status = StatusLog(tmp_path, secrets=['p"w', ""])
    status.failure('can not decrypt with p"w')
    assert lines(tmp_path)[0]["message"] == "can not decrypt with ***"


def test_no_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StatusLog(None).failure("x")
    assert list(tmp_path.iterdir()) == []


# --- perform ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def act(tmp_path, monkeypatch, capfd, caplog) -> Callable:
    """Perform an export whose action is the given function; returns (exit code, last status line, stdout, stderr)."""

    def run(action: Callable, key: str = "", on_outcome: Callable | None = None) -> tuple[int, dict, str, str]:
        monkeypatch.setattr(performing, "_action", lambda verb: action)
        spec = build("export", {"results_dir": str(tmp_path), "encryption_key": key})
        code = performing.perform("export", spec, on_outcome)
        captured = capfd.readouterr()
        return code, lines(tmp_path / "export")[-1], captured.out, captured.err + caplog.text

    return run


def raising(error: BaseException) -> Callable:
    def action(spec, status):
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SpecError("a.b: wrong"), 2, "Configuration error: a.b: wrong"),
        (DataError("x.png: broken"), 2, "DataError: x.png: broken"),
        (ModelError("m.pth: of another encoder"), 2, "ModelError: m.pth: of another encoder"),
        (NotImplementedError("bf8"), 1, "Feature not implemented: bf8"),
        (ValueError("odd"), 1, "Parameter validation error: odd"),
        (TypeError("odd"), 1, "Parameter validation error: odd"),
        (FileNotFoundError(2, "No such file", "x"), 1, "File system error: [Errno 2] No such file: 'x'"),
        (
            OSError(28, "No space left", "x"),
            1,
            "File system error: [Errno 28] No space left: 'x'; free some space there",
        ),
        (OSError(30, "Read-only", "x"), 1, "File system error: [Errno 30] Read-only: 'x'; write elsewhere"),
        (StorageError("s3://b/x: refused"), 1, "File system error: s3://b/x: refused"),
        (NonFiniteLossError("the loss is nan"), 1, "NonFiniteLossError: the loss is nan"),
        (RuntimeError("CUDA out of memory"), 1, "RuntimeError: CUDA out of memory"),
        (MemoryError(), 1, "MemoryError"),
        (AssertionError(), 1, "AssertionError"),
        (KeyError("disparity"), 1, "KeyError: 'disparity'"),
        (IndexError("list index out of range"), 1, "IndexError: list index out of range"),
        (FloatingPointError("two\nlines"), 1, "FloatingPointError: two lines"),
        (KeyboardInterrupt(), 130, "User/System interruption: KeyboardInterrupt"),
        (SystemExit(3), 3, "User/System interruption: SystemExit: 3"),
        (SystemExit(0), 1, "User/System interruption: SystemExit: 0"),
        (SystemExit("text"), 1, "User/System interruption: SystemExit: text"),
    ],
)
def test_every_exception_leaves_a_failure_line_and_its_exit_code(act, error, code, message):
    found, last, out, err = act(raising(error))
    assert found == code
    assert (last["status"], last["verbosity"], last["message"]) == ("FAILURE", "ERROR", message)
    assert out.splitlines()[-1] == "Execution status: FAIL"
    bare = isinstance(error, SystemExit | FloatingPointError | ExplainedError) or getattr(error, "errno", 0) in (28, 30)
    assert ("Traceback" in err) == (code == 1 and not bare), "a traceback hides a sentence that says all"
    assert message.partition(": ")[2] in err


def test_a_users_mistake_is_told_without_a_traceback(act):
    _, _, _, err = act(raising(DataError("list.txt:3: 5 columns")))
    assert err.strip() == "list.txt:3: 5 columns"


def test_success(act):
    outcome = Outcome("Wrote model.onnx", kpi={"epe": 0.25, "check_px": float("nan")})
    seen = []
    code, last, out, _ = act(lambda spec, status: outcome, on_outcome=seen.append)
    assert code == 0 and seen == [outcome]
    assert (last["status"], last["message"]) == ("SUCCESS", "Wrote model.onnx")
    assert last["kpi"] == {"epe": 0.25, "val/epe": 0.25, "check_px": None}
    assert re.search(r"EPE \(px\) +│ +0\.250 ", out) and out.splitlines()[-1] == "Execution status: PASS"


def test_the_accuracy_before_and_after_a_training_stands_side_by_side(act):
    after = {"epe": 1.5, "d1": 0.125, "epe_pixel": 1.25, "d1_pixel": 0.1, "train_loss": 3.0}
    kpi = {f"initial_{name}": 2 * value for name, value in after.items() if name != "train_loss"} | after
    _, last, out, _ = act(lambda spec, status: Outcome("done", kpi=kpi))
    assert kpi.items() <= last["kpi"].items(), "status.json has all figures under their names"
    rows = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in out.splitlines() if "│" in line]
    assert rows == [
        ["EPE (px)", "3.000", "1.500", "2.500", "1.250"],
        ["D1 (%)", "25.00", "12.50", "20.00", "10.00"],
        ["training loss (px)", "3.000"],
    ]
    assert re.search(r"mean over pairs, before training ┃ mean over pairs +┃ over all pixels, before", out)


@pytest.mark.parametrize(("batch", "whose"), [(1, "of a pair"), (4, "of a batch of 4")])
def test_a_latency_names_its_batch(act, batch, whose):
    _, _, out, _ = act(lambda spec, status: Outcome("done", kpi={"latency_median_ms": 8.5, "latency_batch": batch}))
    assert f"time {whose}, median (ms) │   8.5 │" in out and out.count("│") == 3, "no row of its own for the batch"


def test_figures_that_the_action_printed_are_not_printed_again(act):
    _, last, out, _ = act(lambda spec, status: Outcome("done", kpi={"pairs": 2}, printed=True))
    assert last["kpi"] == {"pairs": 2} and out == "done\nExecution status: PASS\n"


def test_an_outcome_that_can_not_be_published_is_a_failure(act):
    code, last, _, _ = act(lambda spec, status: Outcome("done"), on_outcome=lambda outcome: 1 / 0)
    assert code == 1 and last["message"] == "ZeroDivisionError: division by zero"


def test_the_secret_stays_out_of_every_file_and_message(act, tmp_path):
    _, last, out, err = act(raising(RuntimeError("bad key geheim!")), key="geheim!")
    spec, status = ((tmp_path / "export" / name).read_text() for name in ("experiment.yaml", "status.json"))
    assert "geheim" not in spec + status and last["message"] == "RuntimeError: bad key ***"
    assert "encryption_key" not in spec and "geheim" not in out + err


def test_experiment_yaml_is_the_resolved_spec_and_runs_again(act, tmp_path):
    from stereo_core.spec.loading import read_tree

    act(lambda spec, status: Outcome("done"))
    tree = read_tree(tmp_path / "export" / "experiment.yaml")
    assert tree["export"]["opset_version"] == 17 and tree["model"]["encoder"] == "vitl"
    assert build("export", tree) == build("export", {"results_dir": str(tmp_path)})


def test_experiment_yaml_leaves_to_a_checkpoint_what_the_user_left_to_it(tmp_path):
    tree = {"evaluate": {"checkpoint": "m.pth"}, "model": {"valid_iters": 5}, "results_dir": "r"}
    spec = build("evaluate", tree)
    assert performing.public(spec, "evaluate")["model"] == {"valid_iters": 5}
    assert performing.public(spec, "export")["model"]["encoder"] == "vitl"
    tree = {"export": {"checkpoint": "m.pth", "onnx_file": "m.onnx"}, "results_dir": "r"}
    assert "valid_iters" not in performing.public(build("export", tree), "export")["export"]
    tree["export"]["valid_iters"] = 22
    assert performing.public(build("export", tree), "export")["export"]["valid_iters"] == 22


def test_a_results_folder_that_can_not_be_written_is_the_users_to_mend(tmp_path, capfd):
    (tmp_path / "file").touch()
    spec = build("export", {"results_dir": str(tmp_path / "file" / "below")})
    assert performing.perform("export", spec) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"results_dir: cannot write to {tmp_path}/file/below/export: Not a directory")
    assert captured.out.splitlines()[-1] == "Execution status: FAIL"


@pytest.mark.parametrize("verb", ["convert", "export"])
@pytest.mark.parametrize("below", ["", "new"])
def test_a_read_only_results_folder_exits_2_and_stays_as_it_is(verb, below):
    code = """
import os, sys
import stereo_core.run.perform as performing
from stereo_core.spec.loading import build
import stereo_core.actions.convert
if os.getuid() == 0:  # whom read-only folders do not stop
    os.setuid(65534)
verb, folder = sys.argv[1:]
key = "results_dir" if verb == "convert" else "export"
sys.exit(performing.perform(verb, build(verb, {key: folder if verb == "convert" else {"results_dir": folder}})))
"""
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users
        os.chmod(root, 0o555)
        folder = os.path.join(root, below) if below else root
        done = subprocess.run([sys.executable, "-c", code, verb, folder], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        reason = f"results_dir: cannot write to {folder}: Permission denied; choose another folder"
        assert done.stderr.splitlines()[-1] == reason and "Traceback" not in done.stderr
        assert os.listdir(root) == []


def test_sigterm_ends_in_a_failure_line_and_143(tmp_path):
    code = """
import sys, time
import stereo_core.run.perform as performing
from stereo_core.spec.loading import build
def action(spec, status):
    status.running("waiting")
    print("ready", flush=True)
    try:
        time.sleep(60)
    except Exception:
        pass  # what swallows ordinary errors does not swallow this
performing._action = lambda verb: action
sys.exit(performing.perform("export", build("export", {"results_dir": sys.argv[1]})))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and out.splitlines()[-1] == "Execution status: FAIL"
    last = lines(tmp_path / "export")[-1]
    assert (last["status"], last["message"]) == ("FAILURE", "User/System interruption: Terminated: SIGTERM")


def test_sigterm_stays_sigterm_where_a_library_makes_its_own_error_of_it(tmp_path):
    """As a C extension does whose import the signal interrupts: an interruption, not a failed run. In a process of its
    own, which the signal may end."""
    code = """
import os, signal, sys
import stereo_core.run.perform as performing
from stereo_core.spec.loading import build
def action(spec, status):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    except BaseException as error:
        raise SystemError("initialization failed") from error
performing._action = lambda verb: action
sys.exit(performing.perform("export", build("export", {"results_dir": sys.argv[1]})))
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 143
    assert "SIGTERM" in lines(tmp_path / "export")[-1]["message"]
