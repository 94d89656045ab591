"""The command line as a user meets it: real processes, real exit codes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from stereo_core.cli import main
from stereo_core.verbs import VERBS

OTHERS = ("predict", "default_specs", "schema", "describe", "convert_checkpoint", "plot")
HEAVY = ("torch", "pytorch_lightning", "lightning", "torchmetrics", "onnx", "onnxruntime", "kfp", "matplotlib")


def depth_net(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stereo_core.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


def imported_by(*arguments: str) -> set[str]:
    """Heavy modules that a command imports."""
    code = (
        "import sys, atexit; from stereo_core.cli import main;"
        f"atexit.register(lambda: print('IMPORTED', *sorted(set({HEAVY!r}) & set(sys.modules))));"
        f"main({list(arguments)!r}, prog_name='depth_net')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_actions_start_without_what_they_do_not_need():
    """PyTorch takes a second and Lightning two more, in every step of a pipeline."""
    code = """
import sys
from importlib import import_module
for absent, actions in (
    ("torch", ("convert", "synthesize", "gen_trt_engine", "report", "publish_model")),
    ("pytorch_lightning", ("export", "evaluate", "inference", "quantize", "automl")),
):
    for action in actions:
        import_module(f"stereo_core.actions.{action}")
        assert absent not in sys.modules, f"{action} imports {absent}"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_are_not_searched_for_garbage():
    """Half a second of each start with PyTorch. What a long-lived caller made before a second run stays collectable."""
    code = """
import gc
from stereo_core.run.perform import _action
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
_action("evaluate")
assert not seen and gc.isenabled()
count = gc.get_freeze_count()
assert count > 100_000
more = [[] for _ in range(1000)]
_action("evaluate")
assert gc.get_freeze_count() <= count
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_caller_with_pytorch_holds_stays_collectable():
    code = """
import gc, weakref
import torch
from stereo_core.run.perform import _action
network = torch.nn.Linear(1, 1)
network.itself = [network]
_action("evaluate")
gone = weakref.ref(network)
del network
gc.collect()
assert gone() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_uri_makes_no_folder_of_that_name_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (["convert_checkpoint", "starter", "s3://bucket/x.pth", "--to", "nvlabs"],
                 ["predict", "l.png", "r.png", "--output", "gs://bucket/x"]):  # fmt: skip
        done = CliRunner().invoke(main, line)
        assert done.exit_code == 2 and "expected a path on this machine" in done.output
    assert not list(tmp_path.iterdir())


def test_help_names_every_verb():
    result = depth_net("--help")
    assert result.returncode == 0
    for verb in (*VERBS, *OTHERS):
        assert f"\n  {verb} " in result.stdout


@pytest.mark.parametrize("verb", (*VERBS, *OTHERS))
def test_the_help_of_every_verb_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"], prog_name="depth_net")
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"  Example:\n    depth_net {verb} " in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_keys_of_an_example_exist(verb, capsys):
    from stereo_core.spec import spec_class
    from stereo_core.spec.overrides import parse_override
    from stereo_core.spec.paths import dotted, walk

    known = {path for path, _ in walk(spec_class(verb))}
    tokens = [token for token in shlex.split(VERBS[verb].example) if "=" in token]
    assert tokens and {dotted(parse_override(token)[0]) for token in tokens} <= known


def test_version():
    assert depth_net("--version").stdout.strip() == f"stereo-pipelines {version('stereo-pipelines')}"


def test_an_unknown_verb_names_the_nearest():
    result = depth_net("evalute", "-e", "x.yaml")
    assert result.returncode == 2 and "unknown verb evalute; did you mean evaluate?" in result.stderr
    assert "did you mean" not in depth_net("xyz").stderr


def test_an_unknown_option_exits_2():
    assert depth_net("train", "--gpus", "2").returncode == 2


def test_a_bad_spec_exits_2_with_the_message_alone(tmp_path):
    (tmp_path / "my spec.yaml").write_text("results_dir: r\nimage_ext: .png\n")
    result = depth_net("convert", "-e", "my spec.yaml", "split_ratio=2", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "command line: split_ratio: 2 is more than the largest value 1",
        "my spec.yaml: image_ext: unknown key; did you mean image_extension?",
    ]
    assert result.stdout == "" and list(tmp_path.iterdir()) == [tmp_path / "my spec.yaml"]


def test_convert_runs_without_a_spec_file_and_paths_with_blanks_and_quotes_survive(tmp_path):
    scene = tmp_path / "it's my data" / "scene 1"
    scene.mkdir(parents=True)
    for name in ("im0.png", "im1.png"):
        (scene / name).touch()
    result = depth_net(
        "convert",
        "data_root=it's my data",
        "results_dir=my 'lists'",
        "image_dir_pattern=[im0]",
        "right_dir_pattern=[im1]",
        "image_extension=.png",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "Execution status: PASS"
    folder = tmp_path / "my 'lists'"
    assert "scene 1/im0.png" in (folder / "test.txt").read_text()
    last = json.loads((folder / "status.json").read_text().splitlines()[-1])
    assert last["status"] == "SUCCESS" and not (folder / "experiment.yaml").exists()


def test_a_failed_run_exits_1_or_2_and_says_fail(tmp_path):
    (tmp_path / "empty").mkdir()
    result = depth_net("convert", "data_root=empty", "results_dir=r", "right_dir_pattern=[im1]", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] == "Execution status: FAIL"
    assert json.loads((tmp_path / "r" / "status.json").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_schema_and_default_specs(tmp_path):
    schema = json.loads(depth_net("schema", "train").stdout)
    assert schema["properties"]["train"]["properties"]["optim"]["properties"]["lr"]["maximum"] == 0.01
    (tmp_path / "convert.yaml").write_text(depth_net("default_specs", "convert").stdout)
    result = depth_net("convert", "-e", "convert.yaml", cwd=tmp_path)
    assert result.stderr.splitlines() == [
        "convert.yaml: results_dir: is required by convert",
        "convert.yaml: data_root: is required by convert",
    ]
    wrong = depth_net("schema", "trains")
    assert wrong.returncode == 2 and wrong.stderr.strip() == "trains: unknown verb; did you mean train?"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("plot", "--help"), ("schema", "train"), ("default_specs", "train")]
)
def test_nothing_heavy_is_imported_to_print(arguments):
    assert imported_by(*arguments) == set()


def test_convert_does_not_import_torch(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("l.png", "r.png"):
        (tmp_path / "d" / name).touch()
    paths = [f"data_root={tmp_path}/d", f"results_dir={tmp_path}/r"]
    patterns = ["image_dir_pattern=[l.png]", "right_dir_pattern=[r.png]", "image_extension=png"]
    assert imported_by("convert", *paths, *patterns) == set()


def test_describe_and_convert_checkpoint_refuse_what_is_no_model(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"no checkpoint")
    for arguments in (("describe", "x.pth"), ("convert_checkpoint", "x.pth", "y.pth", "--to", "nvlabs")):
        result = depth_net(*arguments, cwd=tmp_path)
        assert result.returncode == 2 and "x.pth" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "y.pth").exists()


def test_plot_says_what_it_drew_and_refuses_a_folder_without_curves(tmp_path):
    from stereo_core.run.status import StatusLog

    (tmp_path / "run").mkdir()
    result = depth_net("plot", "run", cwd=tmp_path)
    assert result.returncode == 2 and "run: nothing to draw" in result.stderr and "Traceback" not in result.stderr
    for step in (10, 20):
        StatusLog(tmp_path / "run").running("Training loop in progress", epoch=0, step=step, step_time=0.5)
    result = depth_net("plot", "run", "--out", "here.png", cwd=tmp_path)
    assert result.stdout == "here.png: run\n" and (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_before_the_work_begins_ends_as_in_it(tmp_path):
    """While the spec is read, or a library is imported, click would say Aborted! and exit with 1."""
    spec = tmp_path / "spec.yaml"
    os.mkfifo(spec)
    command = [sys.executable, "-m", "stereo_core.cli", "train", "-e", str(spec)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with spec.open("w"):  # waits until the command reads it
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (130, "User/System interruption: KeyboardInterrupt\n")
