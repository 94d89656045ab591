"""Compiled pipelines as files."""

import functools
import os
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def compiled(tmp_path):
    """Write IR documents to a file, as kfp does."""

    def write(*documents: dict, name: str = "pipeline.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump_all(documents))
        return path

    return write


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """A function of the DSL -> its compiled file, compiled once."""
    folder = tmp_path_factory.mktemp("compiled")

    @functools.cache
    def write(function) -> Path:
        path = folder / f"{function.name}.yaml"
        from kfp import compiler

        compiler.Compiler().compile(function, str(path))
        return path

    return write


@pytest.fixture
def fake_podman(tmp_path, monkeypatch) -> Path:
    """A podman that notes in a file what it is told to do, and lists one container; returns the file."""
    program, told = tmp_path / "bin/podman", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\necho c0ffee\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return told
