"""README.md and docs/: their commands run, their keys, options and files exist, and the built pages ask no host.

A block that can not run here has a comment above it: `<!-- run by .ci/run -->` or `<!-- not run: why -->`.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

from stereo_core import cli
from stereo_core.data.codecs import read_disparity, write_pfm
from stereo_core.orchestration import cli as pipelines_cli
from stereo_core.spec.loading import build
from stereo_core.spec.overrides import parse_override, whole
from stereo_core.spec.schema import json_schema
from stereo_core.spec.text import parse
from stereo_core.verbs import VERBS

ROOT = Path(__file__).parents[1]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
RUN = ["README.md", "docs/getting-started.md"]
SECTIONS = (
    "dataset",
    "model",
    "train",
    "automl",
    "evaluate",
    "inference",
    "export",
    "gen_trt_engine",
    "quantize",
    "wandb",
)
SMALLER = {  # what makes the README's own-data job small enough for a test
    "crop_size: [320, 608]": "crop_size: [64, 96]",
    "num_epochs: 10": "num_epochs: 1",
    "input_height: 480, input_width: 640": "input_height: 128, input_width: 160",
}
NOT_RUN = {
    "installs packages",
    "needs a cluster",
    "needs a container engine",
    "needs an image",
    "needs data of your own",
    "needs TensorRT",
}
IN_CI, BY_SHELL = "run by .ci/run", "run by the shell that runs the tests"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the comment above it."""

    language: str
    text: str
    mark: str

    def commands(self) -> list[list[str]]:
        """The words of its depth_net and stereo-pipelines commands, without variables before and pipes after."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        words = [shlex.split(line, comments=True) for line in lines]
        starts = [next((i for i, word in enumerate(line) if "=" not in word), 0) for line in words]
        found = [line[start:] for line, start in zip(words, starts, strict=True) if line]
        return [line for line in found if line[0] in ("depth_net", "stereo-pipelines")]


def blocks(page: str) -> list[Block]:
    found = r"(?:^<!-- ([^\n]*) -->\n)?^ *```([\w{}-]*)\n(.*?)^ *```$"
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(language, code, mark) for mark, language, code in re.findall(found, text, re.MULTILINE | re.DOTALL)]


COMMANDS = [(page, line) for page in PAGES for block in blocks(page) for line in block.commands()]
SPECS = [(page, block.text) for page in PAGES for block in blocks(page) if block.language == "yaml"]


def test_the_readme_is_short_and_its_pictures_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 2 and all((ROOT / picture).stat().st_size < 300_000 for picture in pictures)


def test_every_page_has_its_place_in_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = set("\n".join(re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)).splitlines())
    assert {Path(page).stem for page in DOCS} - {"index"} <= listed


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_no_test_runs_says_why(page):
    marks = {block.mark for block in blocks(page) if block.language == "sh"}
    assert {mark.removeprefix("not run: ") for mark in marks} <= NOT_RUN | {"", IN_CI, BY_SHELL}
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for block in blocks(page):
        if block.mark == IN_CI:
            assert all(" ".join(line.split()[:2]) in ci for line in block.text.splitlines()), block.text


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_of_a_page_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"(?:`|^)make ([a-z -]+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert {target for names in named for target in names.split()} <= targets


def test_the_example_s_spec_is_that_of_its_page():
    [shown] = [text for page, text in SPECS if page == "docs/getting-started.md"]
    assert parse(shown, "page") == parse(
        (ROOT / "examples/tiny.yaml").read_text(encoding="utf-8"), "examples/tiny.yaml"
    )


@pytest.mark.parametrize(("page", "text"), SPECS)
def test_a_spec_of_a_page_loads(page, text):
    name = re.match(r"# (\S+)\.yaml", text)
    if name is None:
        assert list(yaml.safe_load_all(text))  # of another program
        return
    tree = parse(text, page)
    for verb in (
        ("train", "evaluate", "inference", "export") if "results_dir" in tree and "dataset" in tree else ("convert",)
    ):
        build(verb, tree)


def node_of(verb: str, path: tuple[str | int, ...]) -> dict[str, Any] | None:
    """What the schema of a verb says about a key; None where there is no such key."""
    node: dict[str, Any] | None = schema(verb)
    for part in path:
        if node is None or node.get("additionalProperties") is True:
            return node
        kinds = [node, *node.get("anyOf", ())]
        if isinstance(part, int) or part == "*":
            node = next((kind["items"] for kind in kinds if "items" in kind), None)
        else:
            node = next((kind["properties"][part] for kind in kinds if part in kind.get("properties", {})), None)
    return node


@functools.cache
def schema(verb: str) -> dict[str, Any]:
    return json_schema(verb)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}:{' '.join(line[:3])}" for page, line in COMMANDS])
def test_a_command_of_a_page_is_one(page, line):
    """The command is there, takes the options and arguments, and the spec of its verb has the keys."""
    program, name, *arguments = line
    group = cli.main if program == "depth_net" else pipelines_cli.cli
    context = click.Context(group)
    command = group.get_command(context, name)
    assert command is not None, name
    for word in ("|", ">"):
        arguments = arguments[: arguments.index(word)] if word in arguments else arguments
    command.make_parser(click.Context(command)).parse_args([a for a in arguments if a != "..."])
    if name in VERBS:
        overrides = arguments[2:] if arguments[:1] == ["-e"] else arguments
        for token, *_ in whole(overrides):
            path, _ = parse_override(token)
            assert node_of(name, path) is not None, token


def keys_in(text: str) -> Iterator[tuple[str, ...]]:
    """The dotted keys of the common spec that a text names as code."""
    for name in re.findall(rf"`'?((?:{'|'.join(SECTIONS)})\.[a-z_.\[\]*0-9]+)", text):
        if Path(name).suffix not in (".txt", ".yaml", ".pth"):
            yield tuple(part for part in re.split(r"[.\[\]]+", name) if part)


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_a_page_names_exist(page):
    named = set(keys_in((ROOT / page).read_text(encoding="utf-8")))
    unknown = [key for key in named if all(node_of(verb, key) is None for verb in VERBS)]
    assert unknown == []


@functools.cache
def texts() -> list[str]:
    """The texts in the code of stereo_core, those with values as `a \0 b`."""
    found = []
    for file in (ROOT / "stereo_core").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
    return found


MESSAGES = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_words_of_a_message_are_those_of_the_code(message):
    words = re.compile(".*".join(map(re.escape, message.split("..."))))
    assert any(words.search(text) for text in texts())


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_is_python(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


# ---- what runs


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> Path:
    """A user's folder: a pair with its calibration, and images/ with left, right and disparities."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    made = ["depth_net", "synthesize", f"results_dir={tmp_path / 'scenes'}", "num_scenes=5", "height=128", "width=160"]
    subprocess.run(made, check=True, capture_output=True)
    for side in ("left", "right", "disparity"):
        (tmp_path / "images" / side).mkdir(parents=True)
    for number, scene in enumerate(sorted((tmp_path / "scenes").glob("*/dataset/data"))):
        name = f"{number:04d}"
        for side in ("left", "right"):
            shutil.copy(scene / side / "rgb/0000.png", tmp_path / "images" / side / f"{name}.png")
            shutil.copy(scene / side / "rgb/0000.png", tmp_path / f"{side}.png")
        disparity, valid = read_disparity(scene / "left/disparity/0000.png", dataset_name="FSD")
        write_pfm(tmp_path / "images/disparity" / f"{name}.pfm", np.where(valid, disparity, np.inf))
    calibration = "cam0=[100 0 80; 0 100 64; 0 0 1]\ncam1=[100 0 80; 0 100 64; 0 0 1]\ndoffs=0\nbaseline=100\n"
    (tmp_path / "calib.txt").write_text(calibration + "width=160\nheight=128\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_in_their_order(page, pairs):
    changed = 0
    for block in blocks(page):
        if block.mark or block.language not in ("sh", "yaml", "python"):
            continue
        text = block.text
        for large, small in SMALLER.items():
            changed += text.count(large)
            text = text.replace(large, small)
        if block.language == "yaml":
            (pairs / text.split()[1]).write_text(text)
            continue
        program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euc"]
        done = subprocess.run([*program, text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (pairs / "results/predict/index.html").is_file()
    assert changed == (len(SMALLER) if page == "README.md" else 0)
    assert list((pairs / "results/trt_inference").rglob("*.png"))


@pytest.mark.slow
def test_the_pages_build_and_ask_no_host(tmp_path):
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    options = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--doctree-dir", str(tmp_path / "trees")]
    command = [sys.executable, "-m", "sphinx", *options, "--conf-dir", "docs", ".", str(tmp_path / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "html").rglob("*.html"))
    assert {f"docs/{Path(page).stem}.html" for page in DOCS} <= {
        page.relative_to(tmp_path / "html").as_posix() for page in pages
    }
    fetched = r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"(https?:)?//|url\([\"']?(https?:)?//|@import"
    files = [*pages, *(tmp_path / "html").rglob("*.css")]
    assert [file.name for file in files if re.search(fetched, file.read_text(encoding="utf-8"))] == []
