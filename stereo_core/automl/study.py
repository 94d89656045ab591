"""The Optuna study of a search: its journal, its algorithm and its trials. It survives kills of the search."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stereo_core.automl.trials import trial_folder
from stereo_core.errors import SpecError
from stereo_core.spec.automl import AutoML
from stereo_core.spec.search_space import Dimension
from stereo_core.values import from_json

JOURNAL = "journal.log"
_NAME = "search"  # Hyperband assigns trials to brackets by this name and the trial's number
_SETTINGS = "settings"
_NEEDS = {"bayesian": ("scipy",)}
_BOHB_CANDIDATES = 64  # TAO's kde_samples


class SearchStudy:
    """The trials of one search, in `<folder>/journal.log`.

    The first trial is the baseline: the unchanged spec. A trial that was running when the search was killed still has
    the state RUNNING in Optuna, and is resumed.

    Args:
        folder: the search's results folder; only one process may open it.
        settings: the spec's `automl`.
        space: the searched keys and their ranges.
        training: everything else that the trials' results depend on, ready for JSON.

    Raises:
        SpecError: Optuna or a package that the algorithm needs is not installed, or the folder holds a search with
            different settings, or trials without their journal.
    """

    def __init__(self, folder: Path, settings: AutoML, space: Sequence[Dimension], training: dict[str, Any]) -> None:
        _check_installed(settings.algorithm)
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self.settings, self.space = settings, list(space)
        _mend(folder / JOURNAL)
        with _quiet():
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
            self.study = optuna.create_study(
                storage=storage,
                study_name=_NAME,
                direction=settings.direction,
                pruner=_pruner(settings),
                load_if_exists=True,
            )
        self._check_settings(folder, training)

    def _check_settings(self, folder: Path, training: dict[str, Any]) -> None:
        own = {
            "algorithm": self.settings.algorithm,
            "metric": self.settings.metric,
            "automl_max_epochs": self.settings.automl_max_epochs,
            "automl_reduction_factor": self.settings.automl_reduction_factor,
            "seed": self.settings.seed,
            "space": {d.path: [d.low, d.high, *d.options] for d in self.space},
        }
        # Through JSON, so that values compare equal to those read from the journal.
        wanted = json.loads(json.dumps({f"automl.{name}": value for name, value in own.items()} | flat(training)))
        known = self.study.user_attrs.get(_SETTINGS)
        if known is None:
            if left := sorted(trial_folder(folder, 0).parent.glob("*/model_epoch_*.pth")):
                raise SpecError(
                    f"results_dir: {folder} holds checkpoints of another search ({left[0].relative_to(folder)}), whose "
                    f"{JOURNAL} is missing, and trials of this one would resume from them; choose another folder, or "
                    "remove the folder trials"
                )
            if not self.study.get_trials():
                self.study.enqueue_trial({d.path: d.default for d in self.space})
            self.study.set_user_attr(_SETTINGS, wanted)
        elif known != wanted:
            key = next(key for key in (*wanted, *known) if wanted.get(key) != known.get(key))
            raise SpecError(
                f"results_dir: {folder} holds a search with {key} {known.get(key)!r}, but this search has "
                f"{wanted.get(key)!r}; choose another folder, or restore the value to resume that search"
            )

    # ---- trials

    def trials(self) -> list[Any]:
        """Optuna's frozen trials that have started, by number."""
        waiting = self._optuna.trial.TrialState.WAITING
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != waiting]

    def interrupted(self) -> list[int]:
        """Numbers of the trials that have started and not ended."""
        return [trial.number for trial in self.trials() if trial.state == self._optuna.trial.TrialState.RUNNING]

    def ask(self) -> int | None:
        """Start a trial; returns its number, or None after automl_max_recommendations trials."""
        begun = len(self.trials())
        if begun >= self.settings.automl_max_recommendations:
            return None
        return self.study.ask().number

    def values(self, number: int) -> dict[str, float]:
        """The values of a trial: dotted path -> value. They are chosen on the first call, and kept."""
        with _quiet():
            # One sampler per trial, so that the values do not depend on how often the search was restarted.
            self.study.sampler = _sampler(self.settings, self.settings.seed + number)
            trial = self._open(number)
            return {dimension.path: _suggest(trial, dimension) for dimension in self.space}

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record a validation after `epoch` (from 1); returns whether to stop the trial early.

        The baseline is never stopped: all other trials are compared with it.
        """
        trial = self._trial(number)
        if epoch not in trial.intermediate_values:
            self._open(number).report(value, epoch)
        poor = self.study.pruner.prune(self.study, self._trial(number))
        return poor and number > 0

    def complete(self, number: int, value: float) -> None:
        self.study.tell(number, value)

    def prune(self, number: int) -> None:
        with _quiet():
            self.study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        self._open(number).set_user_attr("reason", reason)
        with _quiet():
            self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def best(self) -> Any | None:
        """The completed trial with the best value; None if no trial is complete."""
        done = [trial for trial in self.trials() if trial.state == self._optuna.trial.TrialState.COMPLETE]
        return min(done, key=lambda trial: (trial.value, trial.number), default=None)

    def importances(self) -> dict[str, float]:
        """How much each key matters for a good value (PED-ANOVA), as shares that add up to 1; empty with too few
        trials."""
        varied = len(self.space) > 1 and sum(trial.value is not None for trial in self.trials()) >= 4
        if not varied:
            return {}
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        with _quiet():
            shares = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
        return {path: share for path, share in shares.items() if math.isfinite(share)}

    def _open(self, number: int) -> Any:
        """An unfinished trial, open for writing; works for trials of a killed search too."""
        return self._optuna.trial.Trial(self.study, self._trial(number)._trial_id)

    def _trial(self, number: int) -> Any:
        return self.study.get_trials(deepcopy=False)[number]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as dotted paths."""
    result: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def _check_installed(algorithm: str) -> None:
    missing = [name for name in ("optuna", *_NEEDS.get(algorithm, ())) if importlib.util.find_spec(name) is None]
    if missing:
        raise SpecError(
            f"automl.algorithm: {algorithm} needs {' and '.join(missing)}, not installed here; "
            f"pip install 'stereo-pipelines[automl]' {' '.join(missing)}"
        )


def _mend(journal: Path) -> None:
    """Repair the journal after a kill during a write: remove the incomplete last line and the lock.

    Raises:
        SpecError: another line is damaged.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    content = journal.read_bytes() if journal.exists() else b""
    if not content.endswith(b"\n") and content:
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            from_json(line)
        except ValueError as error:
            raise SpecError(
                f"{journal}:{number}: damaged ({error}); restore the file, or choose another results_dir"
            ) from None


def _sampler(settings: AutoML, seed: int) -> Any:
    """The sampler that proposes values. The first quarter of the trials (at most 10) is random.

    bayesian: a Gaussian process with log expected improvement, which takes running trials into account. hyperband and
    asha: random values. bohb: multivariate TPE.
    """
    from optuna import samplers

    at_random = min(10, math.ceil(settings.automl_max_recommendations / 4))
    if settings.algorithm == "bayesian":
        return samplers.GPSampler(seed=seed, n_startup_trials=at_random)
    if settings.algorithm == "bohb":
        return samplers.TPESampler(
            seed=seed, n_startup_trials=at_random, multivariate=True, n_ei_candidates=_BOHB_CANDIDATES
        )
    return samplers.RandomSampler(seed=seed)


def _pruner(settings: AutoML) -> Any:
    """The pruner that stops trials: none, successive halving at epochs 1, n, n^2, ..., or several such brackets."""
    from optuna import pruners

    factor = settings.automl_reduction_factor
    if settings.algorithm == "bayesian":
        return pruners.NopPruner()
    if settings.algorithm == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)
    return pruners.HyperbandPruner(min_resource=1, max_resource=settings.automl_max_epochs, reduction_factor=factor)


def _suggest(trial: Any, dimension: Dimension) -> Any:
    if dimension.options:
        return trial.suggest_categorical(dimension.path, dimension.options)
    suggest = trial.suggest_int if dimension.integer else trial.suggest_float
    return suggest(dimension.path, dimension.low, dimension.high, log=dimension.log)


def _quiet() -> warnings.catch_warnings:
    """Silence Optuna's warnings about experimental features."""
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)
