"""Compiled pipelines as files."""

import functools
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
