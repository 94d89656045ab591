"""Values longer than Linux passes in one argument: our steps read them from a file, others are told."""

import flow_steps
import pytest
from kfp import dsl
from stereo_components import final_status

from stereo_core.orchestration.dag import GraphError
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun
from stereo_core.orchestration.long_arguments import passable

LONG = "t" * 200_000
TOO_LONG = "parameter text: too long; a command-line argument can have at most 131071 bytes"


@dsl.pipeline(name="long")
def long(title: str, text: str):
    """A step of ours and one of another image."""
    with dsl.ExitHandler(final_status(title=title)):
        flow_steps.say(text=text)


def test_a_step_of_ours_takes_any_length(compiled_once, tmp_path):
    run = LocalRun(load_pipeline(compiled_once(long)), {"title": LONG, "text": "x"}, tmp_path)
    assert run.execute() == 0
    assert (tmp_path / "tasks/final-status/summary").read_text().startswith(f"# {LONG}: SUCCEEDED")


def test_another_step_is_refused_before_the_first(compiled_once, tmp_path):
    with pytest.raises(GraphError, match=f"step say: {TOO_LONG}"):
        LocalRun(load_pipeline(compiled_once(long)), {"title": "t", "text": LONG}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_value_that_a_step_made_is_told_by_its_name(tmp_path):
    with pytest.raises(GraphError, match=f"^{TOO_LONG}"):
        passable(["echo", LONG], tmp_path, {"inputs": {"parameterValues": {"a": 1, "text": LONG}}})
