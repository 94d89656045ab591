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


def sums() -> dict:
    """`make` adds 1 to the pipeline's n (20), `use` writes the sum out of a text that holds it: it's 21."""
    number = {"parameterType": "NUMBER_INTEGER"}
    make = container("import sys; open(sys.argv[2], 'w').write(str(int(sys.argv[1]) + 1))")
    make["args"] = ["{{$.inputs.parameters['n']}}", "{{$.outputs.parameters['sum'].output_file}}"]
    use = container("import sys; open(sys.argv[2], 'w').write(sys.argv[1])", ("out",))
    use["args"].insert(0, "{{$.inputs.parameters['text']}}")
    spec = pipeline({"make": make, "use": use}, n={**number, "defaultValue": 20.0})
    components, tasks = spec["components"], spec["root"]["dag"]["tasks"]
    components["comp-make"]["inputDefinitions"] = {"parameters": {"n": number}}
    components["comp-make"]["outputDefinitions"] = {"parameters": {"sum": number}}
    components["comp-use"]["inputDefinitions"] = {"parameters": {"text": {"parameterType": "STRING"}, "sum": number}}
    tasks["make"]["inputs"] = {"parameters": {"n": {"componentInputParameter": "n"}}}
    made = {"taskOutputParameter": {"producerTask": "make", "outputParameterKey": "sum"}}
    text = {"runtimeValue": {"constant": "it's {{$.inputs.parameters['sum']}}"}}
    tasks["use"]["inputs"] = {"parameters": {"sum": made, "text": text}}
    return spec
