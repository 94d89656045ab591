"""Runs a compiled pipeline on this machine.

Every task runs the command that a cluster would run in the image: as a process of this Python environment, or in a
container of that image (podman.py). Independent tasks run in parallel.
A run folder holds

    run.json                 the record: parameters, and each task's state, times, exit code, outputs and digests
    digests.json             digests of imported files, by path, size and time
    tasks/<task>/log.txt     the task's output, all attempts
    tasks/<task>/termination-log    why the last attempt ended
    tasks/<task>/results/    the action's other files (status.json, experiment.yaml, ...)
    tasks/<task>/<port>      its output artifacts
    tasks/<task>/<port>.html    a copy of an artifact that is a page, with the suffix that browsers need

If a pipeline runs again in the same folder, a task is reused if it succeeded, its image, command, parameters and input
contents (sha256) are the same, and its outputs are unchanged. A task that failed or was interrupted keeps its folder
from the last attempt. A task whose inputs changed starts with an empty folder.

A failed task is retried by its retry policy if its exit code means an interruption or a GPU error; other failures would
happen again. A task that requests accelerators gets exclusive use of GPUs from CUDA_VISIBLE_DEVICES, or of the machine.
A task that requests none can see every GPU. With an empty CUDA_VISIBLE_DEVICES every task runs without a GPU.

With `only`, one task runs on the results of the others. Those results must match the present parameters and inputs.
Tasks that are now out of date are listed at the end.

A task whose condition (dsl.If) is false is skipped, and so are the tasks that depend on it or on a failed task. Exit
handlers run when the tasks that they watch have ended, even after a failure or a cancellation, and are never reused.
"""

from stereo_core.orchestration.local.run import LocalRun

__all__ = ["LocalRun"]
