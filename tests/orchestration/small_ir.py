"""PipelineSpec IR of steps that are ordinary commands, so that an engine can be tested with anything."""

import sys


def container(code: str, outputs: tuple[str, ...] = (), inputs: tuple[str, ...] = (), **task) -> dict:
    """A step that runs Python code; input and output artifacts are its arguments, in order."""
    paths = [f"{{{{$.inputs.artifacts['{name}'].path}}}}" for name in inputs]
    paths += [f"{{{{$.outputs.artifacts['{name}'].path}}}}" for name in outputs]
    return {"command": [sys.executable, "-c", code], "args": paths, "inputs": inputs, "outputs": outputs, "task": task}


DATASET = {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}


def pipeline(steps: dict[str, dict], wires: dict[str, dict[str, tuple[str, str]]] | None = None, **parameters) -> dict:
    """PipelineSpec IR of `container` steps; wires: step -> input -> (producer, output)."""
    components, executors, tasks = {}, {}, {}
    for name, step in steps.items():
        wired = (wires or {}).get(name, {})
        components[f"comp-{name}"] = {
            "executorLabel": f"exec-{name}",
            "inputDefinitions": {"artifacts": dict.fromkeys(step["inputs"], DATASET)},
            "outputDefinitions": {"artifacts": dict.fromkeys(step["outputs"], DATASET)},
        }
        executors[f"exec-{name}"] = {
            "container": {"image": "python:3", "command": step["command"], "args": step["args"]}
        }
        tasks[name] = {
            "componentRef": {"name": f"comp-{name}"},
            "taskInfo": {"name": name},
            "inputs": {
                "artifacts": {
                    key: {"taskOutputArtifact": {"producerTask": producer, "outputArtifactKey": output}}
                    for key, (producer, output) in wired.items()
                }
            },
            **step["task"],
        }
    return {
        "pipelineInfo": {"name": "test"},
        "components": components,
        "deploymentSpec": {"executors": executors},
        "root": {"dag": {"tasks": tasks}, "inputDefinitions": {"parameters": parameters}},
        "schemaVersion": "2.1.0",
    }
