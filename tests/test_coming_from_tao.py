"""The page docs/coming-from-tao.md does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stereo_core.spec.loading import build
from stereo_core.spec.text import parse

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from-tao.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(yaml|sh)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SPECS = {text.split()[1]: text for kind, text in BLOCKS if kind == "yaml"}
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in SPECS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_goes_through_a_whole_job():
    verbs = [line.split()[1] for line in COMMANDS]
    job = ["convert", "train", "evaluate", "export", "gen_trt_engine", "inference"]
    assert [verb for verb in verbs if verb in job] == job and set(SPECS) == {"convert.yaml", "depth.yaml"}


def keys_of(tree: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of the values of a spec, without indices."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from keys_of(value, f"{path}.{name}" if path else name)
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for item in tree:
            yield from keys_of(item, path)
    else:
        yield path


def test_apart_from_what_it_marks_the_keys_are_tao_s(shared):
    tao = {entry["path"].replace("[]", "") for entry in json.loads((shared / "contract/parameters.json").read_text())}
    unmarked = "\n".join(line for line in SPECS["depth.yaml"].splitlines() if "not TAO's" not in line)
    keys = {key.removesuffix(".dataset_name").removesuffix(".data_file") for key in keys_of(parse(unmarked, "page"))}
    assert keys - {"dataset", "model.stereo_backbone"} <= tao


def test_its_specs_load_for_every_verb(folder):
    for verb in ("train", "evaluate", "inference", "export", "gen_trt_engine"):
        build(verb, parse(SPECS["depth.yaml"], "page"))
    build("convert", parse(SPECS["convert.yaml"], "page"))


@pytest.mark.slow
def test_its_commands_run_in_order(folder):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for made in (
        "results/train/dn_model_best.pth",
        "model.engine.json",
        "for_tao.pth",
        "results/trt_evaluate/results.json",
    ):
        assert (folder / made).is_file(), made
    for made in ("inference/predicted_depth", "inference/disparity_png16", "trt_inference/disparity_pfm"):
        assert list((folder / "results" / made).rglob("*.p*")), made
