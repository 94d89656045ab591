"""Values longer than Linux passes in one argument: our steps read them from a file, others are told."""

import flow_steps
from kfp import dsl
from stereo_components import final_status

from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.local import LocalRun

LONG = "t" * 200_000


@dsl.pipeline(name="long")
def long(title: str, text: str):
    """A step of ours and one of another image."""
    with dsl.ExitHandler(final_status(title=title)):
        flow_steps.say(text=text)


def test_a_step_of_ours_takes_any_length(compiled_once, tmp_path):
    run = LocalRun(load_pipeline(compiled_once(long)), {"title": LONG, "text": "x"}, tmp_path)
    assert run.execute() == 0
    assert (tmp_path / "tasks/final-status/summary").read_text().startswith(f"# {LONG}: SUCCEEDED")


def test_another_step_is_told_which_value_it_is(compiled_once, tmp_path):
    run = LocalRun(load_pipeline(compiled_once(long)), {"title": "t", "text": LONG}, tmp_path)
    assert run.execute() == 2
    assert run.tasks["say"].message == "parameter text: too long; an argument of a command may have 131071 bytes"
    assert run.tasks["say"].attempts == 1
