"""The compiled pipeline, run on this machine.

Every task is the command that a cluster would run in the image, started here as a process of this Python environment,
or in a container of that image (podman.py). Independent tasks run side by side.
A run folder holds

    run.json                 the record: parameters, and for each task its state, times, exit code, outputs and digests
    digests.json             digests of imported files, by path, size and time
    tasks/<task>/log.txt     what the task printed, all attempts
    tasks/<task>/termination-log    why the last one ended
    tasks/<task>/results/    what the action wrote besides its artifacts (status.json, experiment.yaml, ...)
    tasks/<task>/<port>      its output artifacts

A run started again in the same folder takes over every task that succeeded and whose image, command, parameters and
input contents (sha256) are the same, provided its outputs are unchanged. A task that failed or was cut off finds what
last attempt left in its folder; one whose inputs changed starts in an empty folder.

A task is tried again, as its retry policy says, when its exit code tells of an interruption or of a GPU that failed;
other failures would come back. Tasks that ask for accelerators take GPUs of CUDA_VISIBLE_DEVICES, or of the machine,
for themselves; tasks that ask for none see all of them. An empty CUDA_VISIBLE_DEVICES runs every task without.

A task that is run alone (`only`) takes what the others made, where the same parameters and inputs would make it again.
Those of the others that would now be made of something else are told to be older.

A task whose condition (dsl.If) does not hold is skipped, and so is all that depends on it or on a task that failed.
Exit handlers run when what they watch has ended, after a failure and a cancellation too, and are never taken over.
"""

from stereo_core.orchestration.local.run import LocalRun

__all__ = ["LocalRun"]
