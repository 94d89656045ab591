"""Runs one action: results folder, experiment.yaml, status.json, and an exit code for every way a run can end."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from stereo_core import storage
from stereo_core.cores import share_cores
from stereo_core.errors import ExplainedError, SpecError, UserError
from stereo_core.files import atomic_path
from stereo_core.progress import heartbeat
from stereo_core.run.driver import driver_started
from stereo_core.run.failure import exit_code, is_explained, reason
from stereo_core.run.outcome import Outcome
from stereo_core.run.staging import Stage, staged, writing
from stereo_core.run.status import StatusLog, beginning
from stereo_core.run.termination import explain, sigterm_raises
from stereo_core.run.warned import collected
from stereo_core.spec import ExperimentSpec, effects, results_dir
from stereo_core.spec.fields import Section, marks_of
from stereo_core.spec.paths import walk
from stereo_core.training.distribution import is_main_process
from stereo_core.values import json_ready
from stereo_core.verbs import EXPERIMENT, VERBS, section_of

log = logging.getLogger(__name__)


def perform(verb: str, spec: Section, on_outcome: Callable[[Outcome], None] | None = None) -> int:
    """Run a verb. Reports the result on the console and in `<results_dir>/status.json`.

    Args:
        verb: one of VERBS.
        spec: its checked spec.
        on_outcome: called with the outcome after the action succeeded. If it raises, the run has failed.

    Returns:
        Exit code: 0 done; 1 the run failed; 2 wrong user input; 3 GPU error; 130 Ctrl-C; 143 SIGTERM.
    """
    set_up_logging()
    share_cores()
    try:
        with staged(verb, spec) as stage:
            code = _perform(verb, spec, stage, on_outcome)
            return _stored(stage, code, _secrets(spec))
    except Exception as error:  # the spec could not be staged; _perform and _stored report all other errors
        return _failed(error, StatusLog(None), _secrets(spec))


def _perform(verb: str, spec: Section, stage: Stage, on_outcome: Callable[[Outcome], None] | None) -> int:
    """Run the action on local files. Uploading the results is left to `_stored`."""
    status = StatusLog(None)
    try:
        with sigterm_raises(), heartbeat(lambda: status.where()):
            folder = results_dir(stage.spec, verb)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            stage.claim_results()
            with writing(folder):
                status = _begin_record(verb, folder, spec)
            status.started(beginning(verb))
            with collected(status, stage.with_uris), stage.storing():
                _warn_of_keys_without_effect(verb, spec)
                stage.fetch()
                outcome = _action(verb)(stage.spec, status)
                if on_outcome is not None and is_main_process():
                    on_outcome(outcome)
            message = stage.with_uris(outcome.message)
            status.success(message, kpi=outcome.kpi)
    except BaseException as error:
        return _failed(error, status, _secrets(spec), stage.with_uris)
    if is_main_process():
        if outcome.kpi and not outcome.printed:
            from stereo_core.report.console import print_figures

            print_figures(outcome.kpi)
        _say(message)
    return 0


def _stored(stage: Stage, code: int, secrets: list[str]) -> int:
    """Upload the results of a run that ended with `code`; returns the final exit code."""
    try:
        with sigterm_raises(), storage.in_a_hurry() if code in (130, 143) else heartbeat(_storing):
            stored = stage.store()
    except BaseException as error:
        stay = f"the results are still in {stage.folder}"
        if code:
            log.error("%s; %s", reason(error), stay)
            return code
        return _failed(error, StatusLog(None), secrets, lambda text: f"{text}; {stay}")
    for uri in stored:
        _say(f"Results: {uri}")
    if code == 0:
        _say("Execution status: PASS")
    return code


def _storing() -> str:
    return "uploading the results"


def set_up_logging(rank: int | None = None) -> None:
    """Log to stderr, unless the caller has configured logging. Ranks other than 0 log warnings only."""
    level = logging.INFO if (is_main_process() if rank is None else rank == 0) else logging.WARNING
    name = "" if rank is None else f"rank {rank} "
    if not logging.root.handlers:
        logging.getLogger("torch").setLevel(logging.WARNING)  # it would report its caches at the end of the process
    logging.basicConfig(level=level, format=f"%(asctime)s {name}%(levelname)s %(message)s", datefmt="%H:%M:%S")


def _warn_of_keys_without_effect(verb: str, spec: Section) -> None:
    for path, why in effects.without_effect(verb, spec):
        log.warning("%s has no effect here: %s", path, why)


def _action(verb: str) -> Callable[[Section, StatusLog], Outcome]:
    if verb not in VERBS:
        raise SpecError(f"{verb}: unknown verb; known: {', '.join(VERBS)}")
    name = VERBS[verb].action
    on_gpu = VERBS[verb].spec == EXPERIMENT
    with contextlib.ExitStack() as beside:
        if "torch" not in sys.modules:  # who has imported it before, such as a notebook, may hold large objects
            beside.enter_context(_lasting())
        if on_gpu:
            beside.enter_context(driver_started())
        run: Callable[[Section, StatusLog], Outcome] = importlib.import_module(name).run
    return run


@contextlib.contextmanager
def _lasting() -> Iterator[None]:
    """Never search what exists after the block for garbage: modules, which last as long as the process.

    With PyTorch, Python would do so several times during the import and at the end of the process, for half a second.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def _begin_record(verb: str, folder: Path, spec: Section) -> StatusLog:
    """Write the spec to experiment.yaml, and open status.json."""
    if not is_main_process():
        return StatusLog(None, _secrets(spec))
    if isinstance(spec, ExperimentSpec):
        with atomic_path(folder / "experiment.yaml") as path:
            path.write_text(yaml.safe_dump(public(spec, verb), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return StatusLog(folder, _secrets(spec))


_WEIGHTS = ("checkpoint", "trt_engine", "pretrained_model_path", "model_path", "resume_training_checkpoint_path")


def public(spec: ExperimentSpec, verb: str) -> dict[str, Any]:
    """The resolved spec without secrets, ready for YAML: running the verb with it repeats the run.

    If a checkpoint or an engine defines the network, `model` holds only the keys that the user set; so does
    `export.valid_iters`.
    """
    tree = spec.model_dump()
    own = getattr(spec, "train" if verb == "automl" else section_of(verb))
    if any(getattr(own, name, "") for name in _WEIGHTS):
        tree["model"] = spec.model.model_dump(exclude_unset=True)
        if "valid_iters" not in own.model_fields_set:
            tree[section_of(verb)].pop("valid_iters", None)  # the checkpoint's, see export
    for path in _secret_paths(spec):
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node[section]
        del node[name]
    written: dict[str, Any] = json_ready(tree)
    return written


def _secret_paths(spec: Section) -> list[str]:
    return [path for path, field in walk(type(spec)) if marks_of(field).get("secret")]


def _secrets(spec: Section) -> list[str]:
    values = []
    for path in _secret_paths(spec):
        value: Any = spec
        for name in path.split("."):
            value = getattr(value, name)
        values.append(value)
    return [value for value in values if value]


def _failed(
    error: BaseException, status: StatusLog, secrets: list[str], reword: Callable[[str], str] = lambda text: text
) -> int:
    """Report why the run ended; returns the exit code. Secrets are removed, and `reword` restores the user's paths."""

    def clear(text: str) -> str:
        text = reword(text)
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    message = clear(reason(error))
    try:
        status.failure(message)
    except OSError as second:
        log.error("Cannot write status.json: %s", second)
    if is_main_process():
        explain(error, message)
    if isinstance(error, UserError | ExplainedError):
        message = clear(str(error))
    elif isinstance(error, Exception) and not is_explained(error):
        log.error("The run failed.\n%s", clear("".join(traceback.format_exception(error))))
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    _say("Execution status: FAIL")
    return exit_code(error)


def _say(text: str) -> None:
    print(text, flush=True)
