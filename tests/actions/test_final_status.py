"""What an exit handler writes of a run: the step that failed and why, or that the engine does not tell."""

import json
import random

import pytest

from stereo_core.actions.final_status import NO_REASON, run, summary
from stereo_core.spec.convert import FinalStatusSpec

FAILED = {"state": "FAILED", "pipelineJobResourceName": "demo-x7", "pipelineTaskName": "exit-handler-1"}


def by_argo(*nodes: tuple[str, str]) -> dict:
    """Argo lists every node that failed, in any order, those above a pod too, and quotes the list."""
    failures = [{"displayName": name, "message": message, "phase": "Failed"} for name, message in nodes]
    random.Random(1).shuffle(failures)
    return FAILED | {"error": {"message": json.dumps(json.dumps(failures))}}


def test_the_failed_step_and_its_reason():
    text = summary(
        "train",
        by_argo(
            ("demo-x7", ""),
            ("train", ""),
            ("train", "No more retries left"),
            ("train(0)", "main: Error (exit code 143)"),
            ("train(1)", "main: Error (exit code 2)"),
        ),
    )
    assert text == "# train: FAILED\n\n- run: demo-x7\n\n```\ntrain: main: Error (exit code 2)\n```\n"


def test_a_node_without_a_reason_is_named():
    text = summary("t", by_argo(("evaluate-2", ""), ("evaluate(0)", "main: Error (exit code 1)")))
    assert "evaluate: main: Error (exit code 1)\n" in text and "evaluate-2: failed\n" in text


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            'configmaps "demo-train-cache" is forbidden: User "x" cannot create resource',
            "apply -k manifests/controller",
        ),
        ('ConfigMap "demo-train-cache" is invalid: []: Too long: may not be', "`stereo-pipelines argo-cache rm`"),
    ],
)
def test_a_step_that_the_cache_could_not_keep_has_the_mend_beside_it(message, hint):
    assert hint in summary("t", by_argo(("train", message)))


def test_an_engine_that_tells_nothing_is_said_to():
    """Kubeflow's error is empty, and the name it gives is that of the block."""
    text = summary("train", FAILED | {"error": {}})
    assert NO_REASON in text and "exit-handler-1" not in text


def test_an_error_as_a_person_writes_it(tmp_path):
    status = {"state": "FAILED", "error": "the disk is full"}
    run(FinalStatusSpec(results_dir=str(tmp_path), status=status), None)
    assert "the disk is full" in (tmp_path / "summary.md").read_text()


def test_the_local_engines_own_words():
    assert "export: exit code 2" in summary("t", FAILED | {"error": {"message": "export: exit code 2"}})
    assert summary("t", {"state": "SUCCEEDED"}) == "# t: SUCCEEDED\n\n"


def test_the_record_and_the_last_word_name_steps(tmp_path):
    status = by_argo(("demo-x7", ""), ("train", "main: Error (exit code 2)"))
    outcome = run(FinalStatusSpec(results_dir=str(tmp_path), title="night", status=status), None)
    kept = (tmp_path / "final_status.json").read_text()
    assert json.loads(kept)["error"]["message"] == "train: main: Error (exit code 2)" and "exit-handler" not in kept
    assert outcome.message == "night: FAILED: train: main: Error (exit code 2)"
