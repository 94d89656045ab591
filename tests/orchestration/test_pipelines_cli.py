"""`stereo-pipelines`: exit codes, messages, what a console and a file get to see."""

import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipelines_command import command
from rich.console import Console
from small_ir import container, pipeline

from stereo_core.orchestration.commands.params import compiled_file, read_params
from stereo_core.orchestration.graph import GraphError, load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.page import size
from stereo_core.orchestration.progress import Progress, summary
from stereo_core.orchestration.record import read_record
from stereo_core.spec.loading import read_tree

WRITE = container("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('x' * 2500)", ("out",))


def test_run_prints_steps_and_ends_with_a_table(compiled, tmp_path):
    path = compiled(pipeline({"first-step": WRITE}))
    done = command("run", str(path), "-o", "runs/x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first-step running" in done.stdout and "first-step succeeded after" in done.stdout
    assert "2.5 KB" in done.stdout and "\x1b" not in done.stdout, "no colours in a pipe"
    assert (tmp_path / "runs/x/report.html").is_file() and "runs/x/report.html" in done.stdout


def test_a_run_goes_on_when_nobody_reads_it(compiled, tmp_path):
    """`stereo-pipelines run ... | head -1`"""
    path = compiled(pipeline(dict.fromkeys("abc", WRITE)))
    program = [str(Path(sys.executable).parent / "stereo-pipelines"), "run", str(path), "-o", str(tmp_path / "run")]
    with subprocess.Popen([*program, "--parallel", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert b"a running" in run.stdout.readline()
        run.stdout.close()
        told = run.stderr.read()
    assert run.returncode == 0 and told == b"", told
    found = read_record(tmp_path / "run")
    assert (found.state, {task.state for task in found.tasks.values()}) == ("succeeded", {"succeeded"})
    assert "test: succeeded" in (tmp_path / "run/report.html").read_text()


def test_a_disk_that_a_step_fills(compiled, tmp_path, on_a_small_disk):
    """The run's record can not be written any more: that is told, and the run is not left going on."""
    fill = "import sys\nfile = open(sys.argv[1], 'wb', buffering=0)\ntry:\n  while file.write(bytes(512)): pass\n"
    path = compiled(pipeline({"full": container(fill + "except OSError: pass", ("out",)), "other": WRITE}))
    program = Path(sys.executable).parent / "stereo-pipelines"
    line = f"{program} run {path} -o {tmp_path}/run --parallel 1; echo exit $?; {program} show {tmp_path}/run"
    done = on_a_small_disk(tmp_path / "run", "300k", "sh", "-c", line)
    assert "exit 2" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert f"{tmp_path}/run/run.json cannot be written: No space left on device; make room there" in done.stderr
    assert "full │ stopped" in " ".join(done.stdout.split()), done.stdout


def test_run_shows_the_end_of_a_failed_log(compiled, tmp_path):
    path = compiled(pipeline({"bad": container("print('the reason'); raise SystemExit(1)")}))
    done = command("run", str(path), "-o", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "the reason" in done.stdout and "bad failed: exit code 1" in done.stdout


def test_the_end_of_a_log_is_that_of_the_last_attempt(compiled, tmp_path):
    code = (
        "import os, pathlib, sys; c = pathlib.Path(sys.argv[1]).with_name('count')\n"
        "n = len(c.read_text()) if c.exists() else 0; c.write_text('x' * (n + 1))\n"
        "print('reason', n, flush=True); os.kill(os.getpid(), 9)"
    )
    path = compiled(pipeline({"bad": container(code, ("out",), retryPolicy={"maxRetryCount": 1})}))
    done = command("run", str(path), "-o", str(tmp_path / "run"))
    assert "bad running: attempt 1: ended by SIGKILL" in done.stdout
    assert "reason 1" in done.stdout and "reason 0" not in done.stdout
    assert "reason 0\n--- another attempt ---\nreason 1\n" in (tmp_path / "run/tasks/bad/log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "nam=1"), "unknown parameter nam; did you mean name?"),
        (("-p", "name"), "expected KEY=VALUE"),
        (("-p", "name=x", "-p", "name=y"), "parameter name: given twice"),
        ((), "without a value: name"),
        (("-p", "name=x", "-p", "n=two"), "parameter n: expected an integer, got 'two'"),
        (("-p", "name=x", "-p", f"n={__file__}"), f"; --param n=@{__file__} reads that file"),
        (("-p", "name=x", "--parallel", "0"), "--parallel"),
    ],
)
def test_wrong_input_exits_2(compiled, tmp_path, arguments, message):
    parameters = {"name": {"parameterType": "STRING"}, "n": {"parameterType": "NUMBER_INTEGER", "defaultValue": 1.0}}
    path = compiled(pipeline({"a": WRITE}, **parameters))
    done = command("run", str(path), "-o", str(tmp_path / "run"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_such_file_and_no_output_dir(tmp_path):
    done = command("run", str(tmp_path / "gone.yaml"), "-o", str(tmp_path))
    assert done.returncode == 2 and "gone.yaml" in done.stderr
    done = command("run", "train_to_engin", "-o", str(tmp_path))
    assert done.returncode == 2 and "no such pipeline; did you mean train_to_engine?" in done.stderr
    done = command("run", "x.yaml")
    assert done.returncode == 2 and "--output-dir" in done.stderr


def test_a_run_folder_that_can_not_be(compiled, tmp_path):
    path = compiled(pipeline({"a": WRITE}))
    for folder in (str(path), "/proc/none"):
        done = command("run", str(path), "-o", folder, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and folder in done.stderr, done.stderr
    for folder in ("s3://bucket/run", "gs://bucket/run", "file:///run"):
        for line in (("run", str(path), "-o", folder), ("compile", "-o", folder)):
            done = command(*line, cwd=tmp_path)
            assert done.returncode == 2 and f"{folder}: expected a path on this machine" in done.stderr, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(shutil.which("docker") is None, reason="docker is not installed")
def test_a_container_engine_that_does_not_answer(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    done = command("run", str(compiled(pipeline({"a": WRITE}))), "-o", str(tmp_path / "run"), "--runner", "docker")
    assert done.returncode == 2 and "docker does not answer" in done.stderr and "build it" not in done.stderr


def test_params_from_files_and_with_equals_signs(compiled, tmp_path):
    struct, text = {"parameterType": "STRUCT"}, {"parameterType": "STRING"}
    graph = load_pipeline(compiled(pipeline({"a": WRITE}, spec=struct, name=text)))
    (tmp_path / "train.yaml").write_text("train:\n  num_epochs: 3\n")
    values = read_params(graph, (f"spec=@{tmp_path}/train.yaml", "name=a=b c"))
    assert values == {"spec": {"train": {"num_epochs": 3}}, "name": "a=b c"}
    with pytest.raises(GraphError, match=r"gone\.yaml"):
        read_params(graph, ("spec=@gone.yaml", "name=x"))
    (tmp_path / "bad.yaml").write_text("a: 1\nb: [1\n")
    with pytest.raises(GraphError, match=r"--param spec=.*parameter spec: .*bad\.yaml:3: not valid YAML: [^\n]*$"):
        read_params(graph, (f"spec=@{tmp_path}/bad.yaml", "name=x"))


def test_a_file_of_values_in_the_home_folder(compiled, tmp_path, monkeypatch):
    """The shell leaves a ~ after an @ alone, and some shells one after an =."""
    monkeypatch.setenv("HOME", str(tmp_path))
    kinds = {"spec": {"parameterType": "STRUCT"}, "images": {"parameterType": "STRING", "defaultValue": ""}}
    graph = load_pipeline(compiled(pipeline({"a": WRITE}, **kinds)))
    (tmp_path / "train.yaml").write_text("a: 1")
    given = ("spec=@~/train.yaml", "images=~/images")
    assert read_params(graph, given) == {"spec": {"a": 1}, "images": f"{tmp_path}/images"}
    with pytest.raises(GraphError, match="~nobody-here/x"):
        read_params(graph, ("spec=@~nobody-here/x",))


def test_a_file_of_values_is_read_as_a_spec_is(compiled, tmp_path):
    """`depth_net -e FILE` and `--param spec=@FILE` are one dialect of YAML."""
    graph = load_pipeline(compiled(pipeline({"a": WRITE}, spec={"parameterType": "STRUCT"})))
    file = tmp_path / "train.yaml"
    file.write_text("a: 010\nb: 1_0\nc: on\nd: 1.10\ne: 1:30\nf: 2024-01-01\ng: 1e-4\n")
    values = read_params(graph, (f"spec=@{file}",))
    assert values["spec"] == read_tree(file) == {
        "a": "010", "b": "1_0", "c": "on", "d": "1.10", "e": "1:30", "f": "2024-01-01", "g": "1e-4"
    }  # fmt: skip
    for text, message in (
        ("a: 1\nb: 2\na: 3\n", "train.yaml:3: not valid YAML: duplicate key 'a', first in line 1"),
        ("a: !!timestamp 2024-13-01", "train.yaml:1: not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(GraphError, match=re.escape(message)):
            read_params(graph, (f"spec=@{file}",))


def test_a_missing_extra_is_named():
    start = "import sys; sys.modules['kfp'] = None; from stereo_core.orchestration.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", start, "list"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "kfp is not installed: pip install 'stereo-pipelines[pipelines]'" in done.stderr


def test_list_names_pipelines_and_components():
    done = command("list")
    assert done.returncode == 0
    for name in ("train_to_engine", "demo", "gen_trt_engine", "trt_inference"):
        assert name in done.stdout
    assert "  quantize_and_compare  " in done.stdout, "a blank behind the longest name"
    assert "compiled/train_to_engine.yaml" in done.stdout
    said = re.search(r"^  train_to_engine .*?(?=^  \w)", done.stdout, re.DOTALL | re.MULTILINE)[0]
    lines = [line.strip() for line in said.splitlines()]
    assert lines[2] == "images_uri (required)", "what is required comes first"
    assert {'dataset_name = "GenericDataset"', "num_epochs = 0", "train_spec = {}"} <= {*lines}
    assert "pretrained (optional)" in done.stdout, "an input of a component"


def test_a_shipped_pipeline_by_its_name(tmp_path, monkeypatch):
    """No images there: the message has the place as it was written."""
    for uri, told in (("gs://none/here", "gs://none/here is in object storage"), ("no/images", "no/images: no such")):
        done = command("run", "train-to-engine", "-o", "run", "-p", f"images_uri={uri}", cwd=tmp_path)
        assert done.returncode == 2 and f"importer failed: parameter images_uri: {told}" in done.stdout, done.stderr
        assert "/gcs/" not in done.stdout and f"{tmp_path}/no" not in done.stdout
    options = ("--artifact-repository", "s3://bucket", "-p", "images_uri=s3://bucket/images")
    for line in (("argo", "train_to_engine"), ("submit", "train_to_engine", "--argo")):
        assert "name: train-to-engine" in command(*line, *options).stdout
    done = command("submit", "train_to_engine", "--host", "http://kubeflow.example", *options[2:])
    assert "compiled/train_to_engine.yaml (sha256 " in done.stdout, done.stderr
    monkeypatch.chdir(tmp_path)
    assert compiled_file(Path("demo")).name == "demo.yaml"
    Path("demo").touch()
    assert compiled_file(Path("demo")) == Path("demo"), "a file of that name comes first"


def test_all_that_is_wrong_with_the_parameters_at_once():
    done = command(
        "run", "train_to_engine", "-o", "run", "-p", "num_epochs=x", "-p", "train_spec=[1]", "-p", "bakend=a"
    )
    assert done.returncode == 2
    for told in (
        "num_epochs: expected an integer",
        "train_spec: expected a mapping",
        "did you mean backend?",
        "without a value: images_",
    ):
        assert told in done.stderr, done.stderr


def test_compile_refuses_an_image_that_has_no_name(monkeypatch):
    monkeypatch.setattr("stereo_components.image.IMAGE", "Foo Bar")
    done = command("compile", "--check")
    assert done.returncode == 2 and "STEREO_PIPELINES_IMAGE='Foo Bar'" in done.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = command("compile", "-o", tmp_path / "file")
    assert done.returncode == 1 and re.fullmatch(r"stereo-pipelines: error: .*/file.*\n", done.stderr), done.stderr


def test_a_whole_number_with_an_exponent_is_whole(compiled):
    graph = load_pipeline(compiled(pipeline({"a": WRITE}, n={"parameterType": "NUMBER_INTEGER"})))
    assert read_params(graph, ("n=1e3",)) == {"n": 1000}
    with pytest.raises(GraphError, match=r"expected an integer, got 0\.001"):
        read_params(graph, ("n=1e-3",))


@pytest.mark.slow
def test_compile_check_finds_the_committed_files_right():
    done = command("compile", "--check")
    assert done.returncode == 0, f"{done.stdout}run `make compile` and commit"


def test_terminal_shows_one_live_table(compiled, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    slow = container("import time; time.sleep(0.6)")
    with Progress(console) as progress:
        run = LocalRun(load_pipeline(compiled(pipeline({"a": slow}))), {}, tmp_path / "run", on_change=progress.show)
        run.execute()
    first, *drawn = re.split(r"\x1b\[\?25[lh]|(?:\r?\x1b\[1A\x1b\[2K)+", console.file.getvalue())
    assert first == "" and sum("running" in table for table in drawn) > 1, "drawn again and again while it runs"
    assert all(table.count("┃ step") <= 1 for table in drawn), "each time over the one before"
    assert "step" not in drawn[-1] and "running" not in drawn[-1], "in the end it goes"
    summary(run.record, console)
    assert "succeeded" in console.file.getvalue()


def test_logs_follow_a_step_that_runs(compiled, tmp_path):
    code = (
        "import pathlib, sys, time; go = pathlib.Path(sys.argv[1]).with_name('go'); print('one', flush=True)\n"
        "while not go.exists(): time.sleep(0.02)\n"
        "print('two')"
    )
    path, folder = compiled(pipeline({"long": container(code, ("out",))})), tmp_path / "run"
    program = str(Path(sys.executable).parent / "stereo-pipelines")
    with subprocess.Popen([program, "run", str(path), "-o", str(folder)], stdout=subprocess.DEVNULL) as run:
        while not (folder / "tasks/long/log.txt").exists():
            assert run.poll() is None
            time.sleep(0.05)
        with subprocess.Popen([program, "logs", str(folder), "long", "-f"], stdout=subprocess.PIPE) as logs:
            assert logs.stdout.readline() == b"one\n"
            (folder / "tasks/long/go").touch()
            assert logs.stdout.read() == b"two\n"
    assert (run.returncode, logs.returncode) == (0, 0)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (12_000_000, "12.0 MB")])
def test_sizes(count, text):
    assert size(count) == text


WARNS = """
import pathlib, sys
from stereo_core.run.status import StatusLog
results = pathlib.Path(sys.argv[1]).parent / "results"
results.mkdir(exist_ok=True)
StatusLog(results).warning("images [64 x 96] are scaled down")
pathlib.Path(sys.argv[1]).touch()
"""


def test_what_a_step_warned_of_stands_at_its_end_in_the_table_and_on_the_page(compiled, tmp_path):
    path, folder = compiled(pipeline({"warns": container(WARNS, ("out",)), "good": WRITE})), tmp_path / "runs" / "one"
    told = "warns: warning: images [64 x 96] are scaled down"
    done = command("run", str(path), "-o", str(folder))
    assert re.search(r" warns succeeded after [\d.]+ s, 1 warning\n", done.stdout) and told in done.stdout
    assert "images [64 x 96] are scaled down" in (folder / "report.html").read_text()
    again = command("run", str(path), "-o", str(folder))
    assert "warns reused" in again.stdout and told in again.stdout, "what was made is as doubtful as it was"
    assert told in command("show", str(folder)).stdout
    assert re.search(r"2 of 2 +│ 1 +│", command("runs", str(tmp_path / "runs")).stdout)


def test_runs_show_and_logs(compiled, tmp_path):
    bad = container("print('the reason'); raise SystemExit(7)", (), ("in",))
    later = container("", **{"dependentTasks": ["bad"]})
    path = compiled(pipeline({"good": WRITE, "bad": bad, "later": later}, {"bad": {"in": ("good", "out")}}))
    for name in ("one", "two"):
        done = command("run", str(path), "-o", str(tmp_path / "runs" / name))
        assert done.returncode == 1 and done.stdout.count("later skipped") == 1
    listed = command("runs", str(tmp_path / "runs"))
    assert listed.returncode == 0
    text = " ".join(listed.stdout.split())
    assert text.count("failed") == 2 and text.count("1 of 3") == 2, text
    assert "…" not in text  # a path that is cut short can not be copied

    folder = tmp_path / "runs/one"
    (folder / "report.html").unlink()
    shown = command("show", str(folder))
    assert shown.returncode == 0 and "2.5 KB" in shown.stdout and "bad failed: exit code 7" in shown.stdout
    assert "<svg" in (folder / "report.html").read_text()

    assert command("logs", str(folder), "bad").stdout == "the reason\n"
    assert command("logs", str(folder), "bad", "--follow").stdout == "the reason\n"
    for arguments, message in (
        (("logs", str(folder), "worse"), "no step worse; known: good, bad, later"),
        (
            ("logs", str(folder), "later"),
            f"step later (skipped) has no log; `stereo-pipelines show {folder}` says why\n",
        ),
        (("show", str(tmp_path)), "contains no run"),
        (("show", str(path)), "contains no run"),
        (("runs", str(folder / "tasks")), "contains no runs"),
        (("run", str(path), "-o", str(folder), "--only", "good", "--fresh"), "cannot be combined"),
    ):
        done = command(*arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr

    (tmp_path / "runs/two/run.json").write_text("{")
    listed = command("runs", str(tmp_path / "runs"))
    assert listed.returncode == 0 and "runs/two/run.json: damaged" in listed.stderr
    assert listed.stdout.count("1 of 3") == 1, "the other one is listed"


def test_a_run_that_was_killed_is_told_as_stopped(compiled, tmp_path):
    path = compiled(pipeline({"a": WRITE}))
    LocalRun(load_pipeline(path), {}, tmp_path / "run").execute()
    record = tmp_path / "run/run.json"
    record.write_text(record.read_text().replace('"succeeded"', '"running"'))
    found = read_record(tmp_path / "run")
    assert (found.state, found.tasks["a"].state) == ("stopped", "stopped")
