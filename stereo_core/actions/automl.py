"""automl: a search for hyperparameters; each trial is a training run."""

from __future__ import annotations

import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from stereo_core import storage
from stereo_core.automl import results
from stereo_core.automl.progress import SearchBar
from stereo_core.automl.search import Search, alone, slots
from stereo_core.automl.study import SearchStudy
from stereo_core.automl.trials import best_of, train_tree, trial_folder
from stereo_core.data.datasets import list_pairs
from stereo_core.errors import SpecError
from stereo_core.files import sha256_of
from stereo_core.report.figures import amount, named
from stereo_core.run.outcome import Outcome
from stereo_core.run.remote import files_read
from stereo_core.run.status import StatusLog
from stereo_core.spec import ExperimentSpec, results_dir
from stereo_core.spec.dataset import DataSource
from stereo_core.spec.search_space import never_reached, search_space
from stereo_core.training.distribution import Ranks, resolve
from stereo_core.training.doubts import warm_up_without_end
from stereo_core.values import counted

LOG = logging.getLogger(__name__)

# Keys that may change when a search is resumed: where it runs, and what each trial sets itself.
_FREE = ("results_dir", "num_gpus", "gpu_ids", "resume_training_checkpoint_path", "monitor", "num_epochs")


def run(spec: ExperimentSpec, status: StatusLog) -> Outcome:
    """Train with different sets of values, and keep the best.

    The first trial is the baseline, the unchanged spec, so that the result is never worse. Trials are in `trials/NNN/`,
    Optuna's journal is `journal.log`: the same command resumes a search that was stopped or killed.
    `best_spec.yaml` is the user's spec with the best values (and the user's own `train.num_epochs`),
    `dn_model_best.pth` links to the best checkpoint, and `trials.csv` and `report.html` show all trials.

    With `automl_policy: off` this is `depth_net train`, in the folder of the search.

    Raises:
        SpecError: Optuna is missing, the folder holds another search or a running one, there are several nodes, or a
            searched key of the schedule would only have an effect after a trial's last step.
        UserError: a trial's input is wrong.
        RuntimeError: no trial finished.
    """
    folder = results_dir(spec, "automl")
    if spec.automl.automl_policy == "off":
        return _train_once(spec, status, folder)
    ranks = resolve(spec.train, "train", torch.cuda.device_count())
    if ranks.nodes > 1 or ranks.local is not None:
        raise SpecError(f"automl: a search runs as one process on one node, but the environment requests {_who(ranks)}")
    check_schedule(spec)
    with alone(folder) as lock:
        study = SearchStudy(folder, spec.automl, search_space(spec), what_counts(spec))
        places = slots(spec.automl, ranks.devices if ranks.gpu else (), dict(os.environ))
        LOG.info(
            "running %d trials at a time, %s; each writes its log to trials/NNN/log.txt", len(places), _where(ranks)
        )
        with SearchBar(study) as bar:

            def report_line(line: str) -> None:
                status.running(line)
                bar.say(line)

            Search(spec, study, folder, places, lock, report_line).run()
        return _outcome(spec, study, folder)


def _train_once(spec: ExperimentSpec, status: StatusLog, folder: Path) -> Outcome:
    from stereo_core.actions.train import run as train  # needs Lightning, which a search itself does not

    line = "automl_policy is off: training without a search"
    LOG.info(line)
    status.running(line)
    training = spec.model_copy(deep=True)
    training.train.results_dir = str(folder)
    outcome = train(training, status)
    if "checkpoint" in outcome.artifacts:
        outcome.artifacts["best_spec"] = results.write_spec(spec, folder, {})
        outcome.metadata["best_spec"] = {}
    return outcome


def check_schedule(spec: ExperimentSpec) -> None:
    """SpecError if a searched key of the schedule has no effect in any trial; a warning if a warm-up takes a whole
    trial."""
    split = spec.dataset.train_dataset
    pairs = sum(len(list_pairs(_fetched(source))) for source in split.data_sources)
    steps = spec.automl.automl_max_epochs * math.ceil(pairs // split.batch_size / spec.train.accumulate)
    idle = [f"automl.automl_hyperparameters: {path} has no effect: {why}" for path, why in never_reached(spec, steps)]
    if idle:
        raise SpecError("\n".join(idle))
    if doubt := warm_up_without_end(spec.train.optim, steps):
        LOG.warning("in each trial, whose length is automl.automl_max_epochs: %s", doubt)


def _fetched(source: DataSource) -> DataSource:
    """The source with its annotation file on this machine."""
    uri = source.data_file
    if not storage.is_uri(uri):
        return source
    here = {"data_file": str(storage.fetch(uri)), "data_root": source.data_root or uri.rpartition("/")[0]}
    return source.model_copy(update=here)


def _who(ranks: Ranks) -> str:
    return counted(ranks.nodes, "node") if ranks.nodes > 1 else "several processes (torchrun)"


def _where(ranks: Ranks) -> str:
    return f"each on one of the GPUs {', '.join(map(str, ranks.devices))}" if ranks.gpu else "on the CPU"


def what_counts(spec: ExperimentSpec) -> dict[str, Any]:
    """The part of the spec that determines the results of trials."""
    tree = train_tree(spec, {})
    kept = {name: value for name, value in tree.get("train", {}).items() if name not in _FREE}
    counts = {"dataset": tree.get("dataset", {}), "model": tree.get("model", {}), "train": kept}
    files = {key: _version(path) for key, path in files_read(counts) if not key.startswith(_OF_OTHERS)}
    return counts | {"contents": files}


_OF_OTHERS = ("dataset.test_dataset", "dataset.infer_dataset", "dataset.quant_calibration_dataset")


def _version(path: str) -> str:
    """What tells a file's contents from others: its digest, or its ETag in object storage."""
    return storage.look(path).etag if storage.is_uri(path) else sha256_of(path)


def _outcome(spec: ExperimentSpec, study: SearchStudy, folder: Path) -> Outcome:
    best, metric = study.best(), spec.automl.metric
    results.write_csv(study, folder)
    if best is None:
        results.write_page(study, folder, "No trial finished.")
        reasons = {trial.user_attrs.get("reason", "") for trial in study.trials()}
        tried = counted(len(study.trials()), "trial")
        raise RuntimeError(f"none of {tried} finished: {'; '.join(sorted(reasons))}; see {folder}/trials/*/log.txt")
    checkpoint, metrics = best_of(trial_folder(folder, best.number), metric)
    best_spec = results.write_spec(spec, folder, dict(best.params))
    results.link_checkpoint(folder, checkpoint)
    if spec.automl.automl_delete_intermediate_ckpt:
        results.remove_checkpoints(folder, study.trials(), checkpoint)
    baseline = study.trials()[0].value
    trials = counted(len(study.trials()), "trial")
    message = f"{trials}: the best is trial {best.number} with {named(metric, best.value)}"
    unchanged = "failed" if baseline is None else f"has {amount(metric, baseline)}"
    message += f"; the unchanged spec {unchanged}"
    page = results.write_page(study, folder, message)
    results.print_table(study, sys.stdout)
    states = [trial.state.name for trial in study.trials()]
    kpi = {name.removeprefix("val/"): value for name, value in metrics.items() if name != "val/loss"}
    kpi |= {f"baseline_{metric.removeprefix('val/')}": baseline} if baseline is not None else {}
    kpi |= {"trials": len(states), "trials_stopped": states.count("PRUNED"), "trials_failed": states.count("FAIL")}
    return Outcome(
        f"{message}; {best_spec}",
        kpi=kpi,
        artifacts={"checkpoint": checkpoint, "best_spec": best_spec, "report": page},
        metadata={"best_spec": dict(best.params)},
    )
