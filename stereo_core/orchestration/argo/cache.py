"""Memoization: which steps use Argo's cache, under which key, and what an entry holds.

How the controller works (docs: argo-workflows.readthedocs.io/en/latest/memoization):
- entries are in ConfigMaps of the *controller's* namespace, 1 MiB each; it needs get, create and update there;
- a key may have letters, digits and dashes;
- an entry holds a node's outputs: parameters with their values, artifacts with their keys but without the bucket;
- a hit makes a node without children. If the template also has a retryStrategy, that is a Retry node, and one without
  children never ends. So `memoize` is on a DAG template around the step, and `retryStrategy` inside.
"""

from __future__ import annotations

import hashlib
import json

from stereo_core.orchestration.argo.message import ports_of
from stereo_core.orchestration.argo.models import m
from stereo_core.orchestration.argo.pod import is_ours
from stereo_core.orchestration.argo.repository import Repository
from stereo_core.orchestration.dag import Importer, Pipeline, Port, Task, outputs_in

CACHE_AGE = "720h"  # a cached step older than this runs again
TASK_UID = "task-uid"  # input parameter of a cached step, because a cache key may refer only to inputs
EXECUTOR_OUTPUT = "executor-output"  # output parameter of every step: its executor_output.json


def can_hit(pipeline: Pipeline, task: Task) -> bool:
    """Whether a second run can find the step in the cache. Imported artifacts without a digest make that impossible."""
    outputs = set().union(*map(outputs_in, task.artifacts.values()))
    executors = [pipeline.tasks[output.task].component.executor for output in outputs]
    return not any(isinstance(one, Importer) and "sha256" not in one.metadata for one in executors)


def given_ports(task: Task) -> list[Port]:
    """The ports of the artifacts that the task gets, one for each artifact."""
    ports = (port for port in task.component.artifacts.values() if port.name in task.artifacts)
    return [one for port in ports for one in ports_of(task, port)]


def needs_uid(task: Task) -> bool:
    """Whether the step's cache key may need a value that is unique to this task and run."""
    return bool(task.cache and task.artifacts)


def memoized(pipeline: Pipeline, task: Task, run: m.Template, repository: Repository) -> m.Template:
    """The template through which a cached step is called: a DAG with only this step."""
    names = [*task.component.parameters, *(f"{port.name}-metadata" for port in given_ports(task))]
    parameters = [p for p in (run.inputs and run.inputs.parameters) or [] if p.name in names]
    artifacts = [m.Artifact(name=port.name, optional=not port.required or None) for port in given_ports(task)]
    step = m.DAGTask(
        name=task.name,
        template=run.name,
        arguments=m.Arguments(
            parameters=[m.Parameter(name=name, value=f"{{{{inputs.parameters.{name}}}}}") for name in names] or None,
            artifacts=[
                m.Artifact(name=a.name, from_=f"{{{{inputs.artifacts.{a.name}}}}}", optional=a.optional)
                for a in artifacts
            ]
            or None,
        ),
    )
    if needs_uid(task):
        parameters = [*parameters, m.Parameter(name=TASK_UID)]
    return m.Template(
        name=task.name,
        inputs=m.Inputs(parameters=parameters or None, artifacts=artifacts or None),
        outputs=_outputs(task),
        memoize=_memoize(pipeline, task, repository),
        dag=m.DAGTemplate(tasks=[step]),
    )


def _outputs(task: Task) -> m.Outputs:
    """The outputs in a cache entry: what later steps read. Of executor_output.json only the artifacts' part is kept."""
    made, component = f"tasks.{task.name}.outputs", task.component
    ports = component.output_artifacts.values()
    parameters = [m.Parameter(name=EXECUTOR_OUTPUT, value_from=_short(task, made))]
    for name in component.output_parameters:
        parameters.append(m.Parameter(name=name, value_from=m.ValueFrom(parameter=f"{{{{{made}.parameters.{name}}}}}")))
    artifacts = [
        m.Artifact(name=p.name, from_=f"{{{{{made}.artifacts.{p.name}}}}}", optional=not p.required or None)
        for p in ports
    ]
    return m.Outputs(parameters=parameters, artifacts=artifacts or None)


def _short(task: Task, made: str) -> m.ValueFrom:
    """executor_output.json reduced to the artifacts' metadata; unchanged for commands that are not ours."""
    if not is_ours(task):
        return m.ValueFrom(parameter=f"{{{{{made}.parameters.{EXECUTOR_OUTPUT}}}}}")
    output = f"tasks['{task.name}'].outputs.parameters['{EXECUTOR_OUTPUT}']"
    entries = []
    for name in task.component.output_artifacts:
        metadata = f"toJson(jsonpath({output}, '$.artifacts.{name}.artifacts[0].metadata'))"
        entries.append(f"""'"{name}":{{"artifacts":[{{"metadata":' + {metadata} + '}} ] }}'""")
    return m.ValueFrom(expression=" + ".join(["""'{"artifacts":{'""", " + ',' + ".join(entries) or "''", "'} }'"]))


def _memoize(pipeline: Pipeline, task: Task, repository: Repository) -> m.Memoize:
    """The cache key: image, command, environment, parameters and the metadata (sha256) of input artifacts, plus bucket
    and namespace, because an entry is valid only where its artifacts are stored.

    An artifact without a sha256 may change between runs. Then this run's task ID makes the key unique.
    """
    container = task.container
    place = [repository.bucket, repository.prefix, repository.endpoint]
    fixed = json.dumps([container.image, container.command, container.args, container.env, place], sort_keys=True)
    inputs = [f"inputs.parameters['{name}']" for name in task.component.parameters]
    for port in given_ports(task):
        data = f"inputs.parameters['{port.name}-metadata']"
        inputs.append(f"({data} == '' || {data} contains '\"sha256\":' ? {data} : inputs.parameters['{TASK_UID}'])")
    digest = hashlib.sha256(fixed.encode()).hexdigest()
    key = f"{{{{workflow.namespace}}}}-{{{{=sprig.sha256sum('{digest}' + toJson([{', '.join(inputs)}]))}}}}"
    cache = m.Cache(config_map=m.LocalObjectReference(name=f"{pipeline.name}-{task.name}-cache"))
    return m.Memoize(key=key, max_age=CACHE_AGE, cache=cache)
