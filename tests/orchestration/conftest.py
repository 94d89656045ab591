"""Compiled pipelines as files."""

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
