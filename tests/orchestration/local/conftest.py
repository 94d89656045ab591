"""Runs of small pipelines in the test's folder `run`."""

import pytest

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun


@pytest.fixture
def prepare(compiled, tmp_path):
    """A run of these documents (the pipeline's, the platform's), not yet begun."""

    def prepared(*documents: dict, arguments: dict | None = None, **options) -> LocalRun:
        return LocalRun(load_pipeline(compiled(*documents)), arguments or {}, tmp_path / "run", **options)

    return prepared


@pytest.fixture
def execute(prepare):
    """The same, run to its end; returns the exit code and the run."""

    def executed(*documents: dict, **options) -> tuple[int, LocalRun]:
        run = prepare(*documents, **options)
        return run.execute(), run

    return executed
