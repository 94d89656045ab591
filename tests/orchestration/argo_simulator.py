"""What Argo's controller and executor do with a generated Workflow, done here with processes and folders.

Artifacts are copied in and out of a folder that stands for the pod's `/stereo`; they lie under bare keys in the bucket
that the Workflow's repository names (argo-workflows.readthedocs.io: artifact-repository-ref, key-only-artifacts), which
is a folder of `store` or of the cluster. The rules, by the controller of 3.6 to 4.1 (workflow/controller):
- a cache hit makes a node without children (operator.go, executeTemplate); of a template with a retryStrategy it is a
  Retry node, which then never ends;
- a cached node that can not be saved is an Error (operator.go for pods; dag.go of 4.1 for DAGs, of which 3.7 only logs
  it);
- backoff.maxDuration is a total (operator.go, processNodeRetries);
- expressions choose artifacts in outputs only (dag.go, resolveDependencyReferences).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from argo_cluster import Cluster, Errored
from argo_evaluator import Expression, resolved, substituted

POD = "/stereo"
LATE = "Pod was active on the node longer than the specified deadline"  # kubelet's message, which becomes Argo's
LONGEST = 128 * 1024 - 1  # MAX_ARG_STRLEN


class Failed(Exception):
    """A pod ended with another exit code than 0."""


class Stuck(Exception):
    """The Workflow stays Running for ever."""


@dataclass
class Made:
    """A node's outputs, artifacts as Argo's status has them: `{"s3": {"key": ...}}`."""

    parameters: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, dict] = field(default_factory=dict)


class Simulator:
    """Runs the Workflow among `documents`.

    Args:
        documents: What `stereo-pipelines argo` writes.
        folder: For pods and logs.
        store: Bucket name -> folder.
        parameters: As `argo submit --parameter` gives them.
        cluster: What is left of earlier Workflows.
        fates: Pod (task-attempt) -> status, exit code and message of one that the cluster ends before it has begun.
    """

    def __init__(
        self,
        documents: list[dict],
        folder: Path,
        store: dict[str, Path],
        parameters=None,
        cluster: Cluster | None = None,
        fates=None,
    ):
        self.fates = fates or {}
        self.library = {
            d["metadata"]["name"]: {t["name"]: t for t in d["spec"]["templates"]}
            for d in documents
            if d["kind"] == "WorkflowTemplate"
        }
        self.spec = next(d["spec"] for d in documents if d["kind"] == "Workflow")
        again = self.spec["podGC"]["strategy"] == "OnPodSuccess" and "artifactGC" in self.spec
        assert not again, "deleted while it runs, the Workflow makes its pods again and again"
        self.folder, self.cluster = folder, cluster or Cluster(folder)
        where = self.spec["artifactRepositoryRef"]
        maps = {d["metadata"]["name"]: d["data"] for d in documents if d["kind"] == "ConfigMap"}
        self.repository = json.loads(maps[where["configMap"]][where["key"]])["s3"]
        self.store = {self.repository["bucket"]: self.cluster.folder / "buckets" / self.repository["bucket"]} | store
        self.values = {"workflow.name": f"wf-{folder.name}", "workflow.uid": f"uid-{folder.name}"}
        self.values["workflow.namespace"] = "stereo"
        for item in self.spec.get("arguments", {}).get("parameters", []):
            value = (parameters or {}).get(item["name"], item.get("value"))
            assert isinstance(value, str), f"spec.arguments.{item['name']}.value is required"
            self.values[f"workflow.parameters.{item['name']}"] = value
        self.outputs: dict[str, dict[str, str]] = {}  # task -> its output parameters
        self.artifacts: dict[str, dict] = {}  # "tasks.<task>.outputs.artifacts.<port>" -> as Argo's status has it
        self.states: dict[str, str] = {}
        self.pods: list[str] = []  # tasks in the order of their pods, one for each attempt
        self.hits: list[str] = []  # tasks that were taken from the cache
        self.failures: list[dict] = []

    @property
    def stored(self) -> dict[str, Path]:
        """Where each task's artifacts lie."""
        return {name: self._place(artifact) for name, artifact in self.artifacts.items()}

    def run(self) -> None:
        """All tasks, each when what it depends on is so; then onExit.

        Raises:
            Failed: a pod failed, after all that was left to do.
            Stuck: it would not end.
        """
        own = {template["name"]: template for template in self.spec["templates"]}
        self._tasks(own[self.spec["entrypoint"]], own, self.values, self.artifacts, self.states)
        bad = {"Failed", "Errored"} & set(self.states.values())
        self.values["workflow.status"] = "Failed" if bad else "Succeeded"
        self.values["workflow.failures"] = json.dumps(json.dumps(self.failures or None))  # Argo quotes it, null too
        if "onExit" in self.spec:
            self._tasks(own[self.spec["onExit"]], own, self.values, self.artifacts, self.states)
        if bad:
            raise Failed(self.why)

    # ---- DAGs

    def _tasks(self, template: dict, own: dict, values: dict, artifacts: dict, states: dict, name: str = "") -> None:
        """The tasks of a DAG, whose values, artifacts and states are added to what is given; `name`: of the task that
        calls it."""
        tasks = {task["name"]: task for task in template["dag"]["tasks"]}
        waits = {key: re.findall(r"([\w-]+)\.\w+", task.get("depends", "")) for key, task in tasks.items()}
        for key in TopologicalSorter(waits).static_order():
            states[key] = self._state(tasks[key], own, values, artifacts, states, name or key)
            values[f"tasks.{key}.status"] = states[key]

    def _state(self, task: dict, own: dict, values: dict, artifacts: dict, states: dict, name: str) -> str:
        """What became of a task whose predecessors have ended."""
        so = lambda match: json.dumps(states[match[1]] == match[2])  # noqa: E731
        depends = re.sub(r"([\w-]+)\.(\w+)", so, task.get("depends", "true"))
        if not Expression(depends, {}).whole():
            return "Omitted"
        if "when" in task and substituted(task["when"], values) != "true":
            return "Skipped"
        try:
            self._task(task, own, values, artifacts, name)
        except (Failed, Errored) as error:
            self.why = str(error)
            self.failures.append({"displayName": task["name"], "message": _told(error), "phase": type(error).__name__})
            return type(error).__name__
        return "Succeeded"

    def _task(self, task: dict, own: dict, values: dict, artifacts: dict, name: str) -> None:
        reference = task.get("templateRef")
        own = self.library[reference["name"]] if reference else own
        template = own[reference["template"] if reference else task["template"]]
        arguments = task.get("arguments", {})
        given = {}
        for item in arguments.get("artifacts", []):
            assert "fromExpression" not in item, f"task {name}: fromExpression is not supported in arguments"
            if "s3" in item:
                given[item["name"]] = substituted(item, values)
            elif item["from"][2:-2] in artifacts:
                given[item["name"]] = artifacts[item["from"][2:-2]]
        parameters = {item["name"]: item["value"] for item in substituted(arguments.get("parameters", []), values)}
        self.keep(task["name"], self._node(name, template, own, parameters, given), values, artifacts)

    def keep(self, task: str, made: Made, values: dict | None = None, artifacts: dict | None = None) -> None:
        """Note what a task made."""
        values, artifacts = (
            self.values if values is None else values,
            self.artifacts if artifacts is None else artifacts,
        )
        if values is self.values:
            self.outputs[task] = made.parameters
        values |= {f"tasks.{task}.outputs.parameters.{name}": value for name, value in made.parameters.items()}
        artifacts |= {f"tasks.{task}.outputs.artifacts.{name}": item for name, item in made.artifacts.items()}

    def _node(self, name: str, template: dict, own: dict, given: dict[str, str], artifacts: dict[str, dict]) -> Made:
        """A template run with its inputs, or what the cache has of it."""
        inputs = template.get("inputs", {})
        defaults = {item["name"]: item.get("default") for item in inputs.get("parameters", [])}
        parameters = defaults | given
        missing = [key for key, value in parameters.items() if value is None]
        assert not missing, f"task {name}: inputs.parameters {missing} were not supplied"
        for item in inputs.get("artifacts", []):
            assert item.get("optional") or item["name"] in artifacts, f"task {name}: artifact {item['name']}?"
        of_workflow = {key: value for key, value in self.values.items() if key.startswith("workflow.")}
        own_values = {f"inputs.parameters.{key}": value for key, value in parameters.items()}
        retry = template.get("retryStrategy", {})
        template = resolved({k: v for k, v in template.items() if k != "retryStrategy"}, of_workflow)
        template = resolved(template, own_values)
        memoize = template.get("memoize")
        key = memoize["key"] if memoize else ""
        assert re.fullmatch(r"([a-zA-Z0-9][-a-zA-Z0-9]*)?", key), "invalid cache key"
        where = memoize["cache"]["configMap"]["name"] if memoize else ""
        if memoize and (entry := self.cluster.load(where, key)):
            if retry:
                raise Stuck(f"{name}: a hit is a Retry node without children")
            self.hits.append(name)
            return _read(entry)
        save = (lambda made: self.cluster.save(where, key, name, _entry(made))) if memoize else lambda made: None
        if "container" in template:
            return self._attempts(name, template, artifacts, retry, save)
        made = self._inner(name, template, own, of_workflow | own_values, artifacts)
        save(made)
        return made

    def _inner(self, name: str, template: dict, own: dict, values: dict, artifacts: dict[str, dict]) -> Made:
        """A DAG inside of the Workflow's, with its outputs."""
        artifacts = {f"inputs.artifacts.{key}": item for key, item in artifacts.items()}
        states: dict[str, str] = {}
        self._tasks(template, own, values, artifacts, states, name)
        if set(states.values()) - {"Succeeded", "Skipped"}:
            raise Failed(self.why)
        made = Made()
        for item in template["outputs"].get("parameters", []):
            source = item["valueFrom"]
            text = source.get("parameter") or f"{{{{={source['expression']}}}}}"
            made.parameters[item["name"]] = (
                substituted(text, values) if "parameter" in source else Expression(source["expression"], values).whole()
            )
        for item in template["outputs"].get("artifacts", []):
            names = {key: key for key in artifacts} | values
            source = item["from"][2:-2] if "from" in item else Expression(item["fromExpression"], names).whole()
            if source in artifacts or not item.get("optional"):
                made.artifacts[item["name"]] = artifacts[source]
        return made

    # ---- pods

    def _attempts(self, name: str, template: dict, artifacts: dict[str, dict], retry: dict, save) -> Made:
        total, began = retry.get("backoff", {}).get("maxDuration"), time.monotonic()
        for attempt in range(int(retry.get("limit", 0)) + 1):
            last, made = self._pod(f"{name}-{attempt}", template, artifacts)
            if made is not None:
                try:
                    save(made)
                    return made
                except Errored as error:
                    last = ("Error", -1, str(error))
            status, code, message = last
            self.failures.append({"displayName": f"{name}({attempt})", "message": message, "phase": status})
            last = {"lastRetry.status": status, "lastRetry.exitCode": str(code), "lastRetry.message": message}
            over = total and time.monotonic() - began > float(total.removesuffix("s"))
            if over or not Expression(retry.get("expression", "'' == 'never'"), last).whole():
                break
        log = self.folder / "logs" / name
        raise Failed(f"{name}: exit code {code}: {message}\n{log.read_text()[-2000:] if log.is_file() else ''}")

    def _pod(self, pod: str, template: dict, artifacts: dict[str, dict]) -> tuple[tuple[str, int, str], Made | None]:
        """Status, exit code and message of one pod, and what it made."""
        task, root = pod.rpartition("-")[0], self.folder / "pods" / pod
        self.pods.append(task)
        if pod in self.fates:
            return self.fates[pod], None
        names = {"pod.name": f"{self.values['workflow.name']}-{pod}", "workflow.name": self.values["workflow.name"]}
        template = resolved(template, names)
        assert "{{" not in json.dumps(template["container"]), "failed to resolve"
        here = lambda path: Path(str(path).replace(POD, str(root), 1))  # noqa: E731
        for mount in template["container"]["volumeMounts"]:
            if mount["mountPath"].startswith(POD):
                here(mount["mountPath"]).mkdir(parents=True)
        for item in template["inputs"].get("artifacts", []):
            if item["name"] in artifacts:
                copy(self._place(artifacts[item["name"]]), here(item["path"]))
        if end := self._ended(task, root, template):
            return end, None
        made = Made()
        for item in template["outputs"]["parameters"]:
            path = here(item["valueFrom"]["path"])
            made.parameters[item["name"]] = path.read_text() if path.is_file() else item["valueFrom"]["default"]
        for item in template["outputs"].get("artifacts", []):
            made.artifacts[item["name"]] = self._put(item, here(item["path"]), names)
        if self.spec.get("archiveLogs"):
            key = f"{resolved(self.repository['keyFormat'], names)}/main.log"
            made.artifacts["main-logs"] = {"name": "main-logs", "s3": {"key": key}}
        shutil.rmtree(root)  # podGC
        return ("Succeeded", 0, ""), made

    def _ended(self, task: str, root: Path, template: dict) -> tuple[str, int, str] | None:
        """How a pod's container ended; None: well."""
        container, environment = template["container"], {}
        for item in container.get("env", []):
            if "value" in item:
                environment[item["name"]] = item["value"]
            else:  # no secret and no ConfigMap is there
                assert all(source["optional"] for source in item["valueFrom"].values()), f"{item['name']}: no such key"
        command = [expanded(part, environment) for part in (*container["command"], *container.get("args", []))]
        command = [part.replace(f"{POD}/", f"{root}/") for part in command]
        for index, part in enumerate(command):
            if len(part.encode()) > LONGEST:
                if not self.cluster.passes_files:
                    return "Failed", 64, "main: Error (exit code 64): fork/exec: argument list too long"
                if (
                    "create" not in self.cluster.beside_pods
                ):  # workflowpod.go: offloadContainerArgs, offloadEnvVarTemplate
                    return "Error", -1, 'cannot create resource "configmaps" in API group "" in the namespace "stereo"'
                (root / f"argument-{index}").write_text(part)
                command[index] = f"@{root}/argument-{index}"
        log = self.folder / "logs" / task
        log.parent.mkdir(exist_ok=True, parents=True)
        folders = filter(None, (self.cluster.commands, Path(sys.executable).parent, os.environ["PATH"]))
        path = os.pathsep.join(map(str, folders))
        limit = template.get("activeDeadlineSeconds")
        with log.open("wb") as file:
            try:
                options = {"stdout": file, "stderr": subprocess.STDOUT, "timeout": limit}
                code = subprocess.run(command, env=os.environ | {"PATH": path} | environment, **options).returncode
            except subprocess.TimeoutExpired:
                return "Failed", 143, LATE
        return ("Failed", code, f"main: Error (exit code {code})") if code else None

    # ---- artifacts

    def _put(self, item: dict, path: Path, names: dict[str, str]) -> dict:
        """Store an output artifact: under its own key, or by the repository's format."""
        key = item.get("s3", {}).get("key")
        if key is None:
            packed = "" if "none" in item.get("archive", {}) else ".tgz"
            key = f"{resolved(self.repository['keyFormat'], names)}/{item['name']}{packed}"
        copy(path, self.store[self.repository["bucket"]] / key)
        said = {key: item[key] for key in ("name", "path", "artifactGC", "archive") if key in item}
        return said | {"s3": {"key": key}}

    def _place(self, artifact: dict) -> Path:
        return self.store[artifact["s3"].get("bucket", self.repository["bucket"])] / artifact["s3"]["key"]


def expanded(text: str, environment: dict[str, str]) -> str:
    """A container's command as the kubelet starts it."""
    put = lambda match: "$" if match[0] == "$$" else environment.get(match[1], match[0])  # noqa: E731
    return re.sub(r"\$\$|\$\(([A-Za-z_]\w*)\)", put, text)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Errored) else ""


def _entry(made: Made) -> dict:
    parameters = [{"name": name, "value": value} for name, value in made.parameters.items()]
    return {"parameters": parameters, "artifacts": list(made.artifacts.values())}


def _read(entry: dict) -> Made:
    parameters = {item["name"]: item["value"] for item in entry["parameters"]}
    return Made(parameters, {item["name"]: item for item in entry["artifacts"]})


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
