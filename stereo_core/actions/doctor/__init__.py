"""doctor: checks a training's spec, files and machine before a long run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict

from stereo_core.actions.doctor.case import Case, this_machine
from stereo_core.actions.doctor.data import files, pairs, samples
from stereo_core.actions.doctor.machine import cores, devices, disk, links, memory, shared_memory
from stereo_core.errors import SpecError, UserError
from stereo_core.models import from_spec, network_facts
from stereo_core.progress import heartbeat, since
from stereo_core.report.console import stdout
from stereo_core.report.findings import Finding, ok, print_findings, problem, warning
from stereo_core.run.outcome import Outcome
from stereo_core.run.status import StatusLog
from stereo_core.spec import effects, results_dir
from stereo_core.spec.experiment import ExperimentSpec
from stereo_core.spec.train import AUTO
from stereo_core.training.checkpoints import newest_whole, read_progress
from stereo_core.training.doubts import beyond_the_cost_volume
from stereo_core.values import counted


def run(spec: ExperimentSpec, status: StatusLog) -> Outcome:
    """Print the findings of all CHECKS, and write them as one line of status.json, under `findings`.

    `load_spec` has already checked that the spec loads and that its keys are consistent.

    Raises:
        SpecError: there is a problem that would stop the training.
    """
    case = Case(spec, this_machine())
    findings = [(name, finding) for name in CHECKS for finding in _found(name, case)]
    print_findings(findings, stdout())
    counts = Counter(finding.level for _, finding in findings)
    kpi = {"problems": counts["problem"], "warnings": counts["warning"]} | case.kpi
    status.running("Checks done.", kpi=kpi, findings=[{"check": name} | asdict(finding) for name, finding in findings])
    if counts["problem"]:
        names = dict.fromkeys(name for name, finding in findings if finding.level == "problem")
        raise SpecError(f"{counted(counts['problem'], 'problem')} found, see the table: {', '.join(names)}")
    return Outcome(f"No problem found; {counted(counts['warning'], 'warning')}", kpi=kpi, printed=True)


def _found(name: str, case: Case) -> Iterator[Finding]:
    start = time.monotonic()
    try:
        with heartbeat(lambda: f"checking {name} ({since(start)} so far)"):
            yield from CHECKS[name](case)
    except UserError as error:
        yield problem(str(error))


def keys(case: Case) -> Iterator[Finding]:
    """Keys that the training does not read."""
    idle = [f"{path}: {why}" for path, why in effects.without_effect("train", case.spec)]
    yield from (warning(f"no effect: {line}", "remove it from the spec") for line in idle)
    if not idle:
        yield ok("the spec loads, its keys are consistent, and all of them have an effect")


def weights(case: Case) -> Iterator[Finding]:
    """The checkpoint that the run starts from or resumes, and the backbone files, loaded as the training does."""
    train = case.spec.train
    resume_path = train.resume_training_checkpoint_path
    folder = results_dir(case.spec, "train")
    resume = newest_whole(folder) if resume_path == AUTO else resume_path or None
    if resume:
        done = read_progress(resume).epochs
        text = f"the run resumes from {resume}: {done} of {counted(train.num_epochs, 'epoch')} are done"
        over = warning if resume_path == AUTO else problem  # auto does nothing if the run has finished
        yield ok(text) if done < train.num_epochs else over(text, "raise train.num_epochs")
    elif next(folder.glob("model_epoch_*.pth"), None):
        yield problem(
            f"this is a new run, but {folder} contains checkpoints of another one",
            "set train.resume_training_checkpoint_path=auto to resume that one, or choose another train.results_dir",
        )
    case.network = from_spec(case.spec, resume or train.pretrained_model_path or None)
    millions = sum(p.numel() for p in case.network.parameters()) / 1e6
    what = resume or train.pretrained_model_path or "a new network"
    size = network_facts(case.network.config).get("encoder", "FastFoundationStereo")
    yield ok(f"{what}: {size}, {millions:.1f} million parameters")
    if beyond := beyond_the_cost_volume(case.spec, case.network):
        yield warning(*beyond.split("; ", 1))


CHECKS: dict[str, Callable[[Case], Iterator[Finding]]] = {
    "keys": keys,
    "weights": weights,
    "devices": devices,
    "files": files,
    "samples": samples,
    "pairs": pairs,
    "CPU cores": cores,
    "shared memory": shared_memory,
    "links": links,
    "disk": disk,
    "memory": memory,
}
"""The order matters: later checks use results of earlier ones in the Case."""
