"""What a run warns of in its log stands in its record, on its page and in the reports that are made of it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import stereo_core.run.perform as performing
from stereo_core.report.html import action_report
from stereo_core.run.outcome import Outcome
from stereo_core.run.ranks import in_ranks
from stereo_core.run.status import LOOP, MOST, StatusLog, warnings_in
from stereo_core.run.warned import collected
from stereo_core.spec.loading import build
from stereo_core.training.distribution import Ranks

LOG = logging.getLogger("stereo_core.actions.some_verb")
SCALED = "images of 64 x 96 are scaled down: their figures can not be compared"


@pytest.fixture
def perform(tmp_path, monkeypatch):
    """Perform an export whose action is the given function; the lines of its status.json."""

    def run(action, **keys) -> list[dict]:
        monkeypatch.setattr(performing, "_action", lambda verb: action)
        performing.perform("export", build("export", {"results_dir": str(tmp_path)} | keys))
        text = (tmp_path / "export" / "status.json").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    return run


def warn(*texts: str):
    def action(spec, status) -> Outcome:
        for text in texts:
            LOG.warning("%s", text)
        return Outcome("done")

    return action


def test_each_warning_is_a_line_once_and_the_last_line_says_how_it_ended(perform, tmp_path):
    lines = perform(warn(SCALED, "another", SCALED))
    warned = [line for line in lines if line["verbosity"] == "WARNING"]
    assert [line["message"] for line in warned] == [SCALED, "another"] == warnings_in(tmp_path / "export")
    assert {line["status"] for line in warned} == {"RUNNING"}, "one of TAO's words"
    assert lines[0]["status"] == "STARTED" and lines[-1]["status"] == "SUCCESS"


def test_a_failed_run_has_its_warnings_too(perform):
    def action(spec, status):
        LOG.warning(SCALED)
        raise ValueError("odd")

    assert [line["verbosity"] for line in perform(action)[1:]] == ["WARNING", "ERROR"]


def test_a_run_does_not_tell_the_warnings_of_the_one_before(perform, tmp_path):
    perform(warn(SCALED))
    lines = perform(warn("another"))
    assert [line["verbosity"] for line in lines].count("WARNING") == 2
    assert warnings_in(tmp_path / "export") == ["another"]


def test_the_beginning_of_a_training_s_loop_is_not_that_of_a_run(tmp_path):
    status = StatusLog(tmp_path)
    status.started("Starting Depth Net train.")
    status.warning(SCALED)
    status.started(LOOP)
    assert status.warnings == [SCALED]


def test_a_key_without_effect_and_a_secret(perform, tmp_path):
    perform(warn("the key is geheim!"), encryption_key="geheim!")
    *idle, last = warnings_in(tmp_path / "export")
    assert all(" has no effect here: " in text for text in idle) and idle[-1].startswith("encryption_key ")
    assert last == "the key is ***"


def test_more_than_are_kept_are_counted(perform, tmp_path):
    perform(warn(*(f"warning {number}" for number in range(MOST + 5)), "warning 0"))
    found = warnings_in(tmp_path / "export")
    assert found[:MOST] == [f"warning {number}" for number in range(MOST)]
    assert found[MOST:] == ["further warnings, only in the log: 5"]


def test_other_libraries_and_what_comes_after_the_run_do_not_count(perform, tmp_path):
    def action(spec, status):
        logging.getLogger("pytorch_lightning").warning("tip")
        return Outcome("done")

    perform(action)
    LOG.warning("later")
    assert warnings_in(tmp_path / "export") == []


def warn_in_each(folder: Path, status: StatusLog, ranks: Ranks) -> Outcome:
    LOG.warning(SCALED)
    LOG.warning("of rank %d", ranks.rank)
    return Outcome("done")


def test_every_process_of_a_run_counts(tmp_path):
    status = StatusLog(tmp_path)
    with collected(status):
        in_ranks(warn_in_each, tmp_path, status, Ranks((0, 0)))
    assert sorted(status.warnings) == sorted([SCALED, "of rank 0", "of rank 1"])


def test_the_page_of_an_action_begins_with_its_warnings(tmp_path):
    outcome = Outcome("done", kpi={"epe": 1.0})
    assert 'class="warn"' not in action_report(tmp_path, outcome, "evaluate")
    StatusLog(tmp_path).warning("a < b")
    page = action_report(tmp_path, outcome, "evaluate")
    assert page.index("a &lt; b") < page.index("<h2>Accuracy</h2>")


def test_a_warning_does_not_say_where_a_run_is(tmp_path):
    status = StatusLog(tmp_path)
    status.running("Loading checkpoint: a.pth")
    status.warning(SCALED)
    assert status.where().startswith("Loading checkpoint: a.pth (")
