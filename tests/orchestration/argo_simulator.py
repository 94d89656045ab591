"""What Argo's controller and executor do with a generated Workflow, done here with processes and folders.

References are replaced as Argo does it: in the JSON text of a task or template, from `{{` to the next `}}`; `{{=...}}`
is evaluated (the part of the expression language that the manifests use). A template has them replaced twice, first
what is known of the workflow, then its inputs; an expression stands as it is where one of its names is not known.
Artifacts are copied in and out of a folder that stands for the pod's `/stereo`; a bucket is a folder of `store`.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

POD = "/stereo"
TOKEN = re.compile(
    r"""\s*('[^']*'|"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:e-?\d+)?|\|\||&&|[=!<>]=|[A-Za-z_]\w*|[\[\](),.?:+<>!])"""
)
COMPARE = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt}
COMPARE |= {">=": operator.ge, "in": lambda a, b: a in b, "contains": lambda a, b: b in a}
COMPARE["matches"] = lambda a, b: re.search(b, a) is not None
LATE = "Pod was active on the node longer than the specified deadline"  # kubelet's message, which becomes Argo's


class Failed(Exception):
    """A pod ended with another exit code than 0."""


class Expression:
    """`inputs.parameters['a'] == '' ? '[]' : f(...) + 'x'`, over a flat mapping of dotted names to texts.

    What is not needed for the value (the other choice, what comes after a false `&&`) need not be in the mapping.
    """

    def __init__(self, text: str, values: dict[str, str]):
        self.values, self.tokens, self.needed, position = values, [], True, 0
        self.unknown: set[str] = set()
        while text[position:].strip():
            match = TOKEN.match(text, position)
            assert match, f"no token at {text[position : position + 30]!r}"
            self.tokens.append(match[1])
            position = match.end()

    def take(self, *wanted: str) -> str:
        token = self.tokens.pop(0) if self.tokens else ""
        assert not wanted or token in wanted, f"{token!r} instead of {wanted}"
        return token

    def next_is(self, token: str) -> bool:
        return self.tokens[:1] == [token]

    def whole(self):
        value = self.choice()
        assert not self.tokens, f"{self.tokens} is left over"
        return value

    def unless(self, needed: bool, part):
        """The value of a part, which may be without one where it is not needed."""
        before, self.needed = self.needed, self.needed and bool(needed)
        value = part()
        self.needed = before
        return value

    def choice(self):
        value = self.either()
        if not self.next_is("?"):
            return value
        self.take("?")
        yes = self.unless(value, self.choice)
        self.take(":")
        no = self.unless(not value, self.choice)
        return yes if value else no

    def either(self):
        value = self.both()
        while self.next_is("||"):
            self.take("||")
            right = self.unless(not value, self.both)
            value = value or right
        return value

    def both(self):
        value = self.comparison()
        while self.next_is("&&"):
            self.take("&&")
            right = self.unless(value, self.comparison)
            value = value and right
        return value

    def comparison(self):
        value = self.sum()
        if self.tokens and self.tokens[0] in COMPARE:
            compare = COMPARE[self.take()]
            right = self.sum()
            return compare(value, right) if self.needed else None
        return value

    def sum(self):
        value = self.atom()
        while self.next_is("+"):
            self.take("+")
            right = self.atom()
            value = value + right if self.needed else None
        return value

    def items(self, end: str) -> list:
        found = []
        while not self.next_is(end):
            found.append(self.choice())
            if self.next_is(","):
                self.take(",")
        self.take(end)
        return found

    def atom(self):
        token = self.take()
        if token.startswith("'"):
            return token[1:-1]
        if token[0] in '"-0123456789' or token in ("true", "false"):
            return json.loads(token)
        if token == "[":
            return self.items("]")
        if token == "!":
            return not self.atom()
        if token == "(":
            value = self.choice()
            self.take(")")
            return value
        name = token
        while self.tokens[:1] in (["."], ["["], ["("]):
            if self.next_is("("):
                self.take("(")
                given = self.items(")")
                return FUNCTIONS[name](*given) if self.needed else None
            if self.take(".", "[") == ".":
                name += "." + self.take()
            else:
                name += "." + self.take()[1:-1]
                self.take("]")
        self.unknown |= {name} - self.values.keys()
        return self.values[name] if self.needed else None


def go_json(value) -> str:
    """Go's json.Marshal: keys in order, no spaces, HTML's characters escaped."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def jsonpath(text: str, path: str):
    value = json.loads(text)
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.removeprefix("$")):
        value = value[name] if name else value[int(index)]
    return value


def replace_all(pattern: str, text: str, replacement: str) -> str:
    return re.sub(pattern, re.sub(r"\$\{(\d+)\}", r"\\\1", replacement), text)


FUNCTIONS = {
    "toJson": go_json,
    "jsonpath": jsonpath,
    "asInt": int,
    "asFloat": float,
    "sprig.sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "sprig.regexReplaceAll": replace_all,
}


def substituted(part, values: dict[str, str]):
    """A part of a manifest with its references replaced; a value is put into JSON text, escaped."""

    def value(match: re.Match) -> str:
        tag = json.loads(f'"{match[1]}"')
        found = Expression(tag[1:], values).whole() if tag.startswith("=") else values[tag]
        found = json.dumps(found) if isinstance(found, bool) else found
        assert isinstance(found, str), f"{tag} is no text"
        return json.dumps(found)[1:-1]

    return json.loads(re.sub(r"\{\{(.*?)\}\}", value, json.dumps(part), flags=re.DOTALL))


def resolved(part, values: dict[str, str]):
    """As `substituted`, with what is not known left as it is; an expression needs all its names, used or not."""

    def value(match: re.Match) -> str:
        tag = json.loads(f'"{match[1]}"')
        if tag.startswith("="):
            expression = Expression(tag[1:], values)
            expression.unless(False, expression.whole)
            known = not expression.unknown
        else:
            known = tag in values
        return json.dumps(substituted(json.loads(f'"{match[0]}"'), values))[1:-1] if known else match[0]

    return json.loads(re.sub(r"\{\{(.*?)\}\}", value, json.dumps(part), flags=re.DOTALL))


class Simulator:
    """Runs the Workflow among `documents`.

    Args:
        documents: What `stereo-pipelines argo` writes.
        folder: For pods and stored artifacts.
        store: Bucket name -> folder.
        parameters: As `argo submit --parameter` gives them.
        cache: What memoization keeps, from one run to the next.
        fates: Pod (task-attempt) -> status, exit code and message of one that the cluster ends before it has begun.
    """

    def __init__(
        self, documents: list[dict], folder: Path, store: dict[str, Path], parameters=None, cache=None, fates=None
    ):
        self.fates = fates or {}
        self.library = {
            (d["metadata"]["name"], t["name"]): t
            for d in documents
            if d["kind"] == "WorkflowTemplate"
            for t in d["spec"]["templates"]
        }
        self.spec = next(d["spec"] for d in documents if d["kind"] == "Workflow")
        self.folder, self.store, self.cache = folder, store, {} if cache is None else cache
        self.values = {"workflow.name": f"wf-{folder.name}", "workflow.uid": f"uid-{folder.name}"}
        for item in self.spec.get("arguments", {}).get("parameters", []):
            value = (parameters or {}).get(item["name"], item.get("value"))
            assert isinstance(value, str), f"spec.arguments.{item['name']}.value is required"
            self.values[f"workflow.parameters.{item['name']}"] = value
        self.outputs: dict[str, dict[str, str]] = {}  # task -> its output parameters
        self.stored: dict[str, Path] = {}  # "tasks.<task>.outputs.artifacts.<port>" -> where it lies
        self.states: dict[str, str] = {}
        self.pods: list[str] = []  # tasks in the order of their pods, one for each attempt

    def run(self) -> None:
        """All tasks, each when what it depends on is so; then onExit.

        Raises:
            Failed: a pod failed, after all that was left to do.
        """
        self._dag(self.spec["entrypoint"])
        failed = [name for name, state in self.states.items() if state == "Failed"]
        self.values["workflow.status"] = "Failed" if failed else "Succeeded"
        failures = json.dumps([{"displayName": name} for name in failed] or None)
        self.values["workflow.failures"] = json.dumps(failures)  # Argo quotes it, for the null of a success too
        if "onExit" in self.spec:
            self._dag(self.spec["onExit"])
        if failed:
            raise Failed(self.why)

    def _dag(self, template: str) -> None:
        templates = {template["name"]: template for template in self.spec["templates"]}
        tasks = {task["name"]: task for task in templates[template]["dag"]["tasks"]}
        waits = {name: re.findall(r"([\w-]+)\.\w+", task.get("depends", "")) for name, task in tasks.items()}
        for name in TopologicalSorter(waits).static_order():
            self.states[name] = self._state(tasks[name])
            self.values[f"tasks.{name}.status"] = self.states[name]

    def _state(self, task: dict) -> str:
        """What became of a task whose predecessors have ended."""
        so = lambda match: json.dumps(self.states[match[1]] == match[2])  # noqa: E731
        depends = re.sub(r"([\w-]+)\.(\w+)", so, task.get("depends", "true"))
        if not Expression(depends, {}).whole():
            return "Omitted"
        if "when" in task and substituted(task["when"], self.values) != "true":
            return "Skipped"
        try:
            self._task(task)
        except Failed as error:
            self.why = str(error)
            return "Failed"
        return "Succeeded"

    def _task(self, task: dict) -> None:
        name, reference = task["name"], task["templateRef"]
        template = self.library[reference["name"], reference["template"]]
        artifacts = task.get("arguments", {}).get("artifacts", [])
        sources = {item["name"]: item["from"][2:-2] for item in artifacts if "from" in item}
        for item in artifacts:
            if "fromExpression" in item:
                paths = {**self.values, **{name: name for name in self.stored}}
                sources[item["name"]] = Expression(item["fromExpression"], paths).whole()
        located = substituted([item for item in artifacts if "s3" in item], self.values)
        given = substituted(task.get("arguments", {}).get("parameters", []), self.values)
        parameters = template["inputs"].get("parameters", [])
        of = {item["name"]: item["value"] for item in given}
        parameters = [{**item, "value": of.get(item["name"], item.get("default"))} for item in parameters]
        missing = [item["name"] for item in parameters if item["value"] is None]
        assert not missing, f"task {name}: inputs.parameters {missing} were not supplied"
        files = {port: self.stored[source] for port, source in sources.items()}
        files |= {item["name"]: self.store[item["s3"]["bucket"]] / item["s3"]["key"] for item in located}

        retry = template.get("retryStrategy", {})
        of_workflow = {name: value for name, value in self.values.items() if name.startswith("workflow.")}
        template = {**template, "inputs": {**template["inputs"], "parameters": parameters}}
        template = resolved({k: v for k, v in template.items() if k != "retryStrategy"}, of_workflow)
        own = {f"inputs.parameters.{item['name']}": item["value"] for item in template["inputs"]["parameters"]}
        template = resolved(template, own)
        assert "{{" not in json.dumps(template["container"]), "failed to resolve"
        key = template["memoize"]["key"] if "memoize" in template else None
        assert key is None or re.fullmatch(r"[a-zA-Z0-9][-a-zA-Z0-9]*", key), "invalid cache key"
        if key is None or key not in self.cache:
            made = self._attempts(name, template, files, retry)
            if key is None:
                self._keep(name, made)
                return
            self.cache[key] = made
        self._keep(name, self.cache[key])

    def _keep(self, task: str, made: tuple[dict[str, str], dict[str, Path]]) -> None:
        self.outputs[task] = made[0]
        self.values |= {f"tasks.{task}.outputs.parameters.{name}": value for name, value in made[0].items()}
        self.stored |= {f"tasks.{task}.outputs.artifacts.{name}": path for name, path in made[1].items()}

    def _attempts(self, name: str, template: dict, files: dict[str, Path], retry: dict):
        for attempt in range(int(retry.get("limit", 0)) + 1):
            last, made = self._pod(f"{name}-{attempt}", template, files)
            status, code, message = last
            if code == 0:
                return made
            last = {"lastRetry.status": status, "lastRetry.exitCode": str(code), "lastRetry.message": message}
            if not Expression(retry.get("expression", "'' == 'never'"), last).whole():
                break
        log = self.folder / "logs" / name
        raise Failed(f"{name}: exit code {code}: {message}\n{log.read_text()[-2000:] if log.is_file() else ''}")

    def _pod(self, name: str, template: dict, files: dict[str, Path]):
        """Status, exit code and message, and the output parameters and artifacts of one pod."""
        task, root = name.rpartition("-")[0], self.folder / "pods" / name
        self.pods.append(task)
        if name in self.fates:
            return self.fates[name], None
        here = lambda path: Path(str(path).replace(POD, str(root), 1))  # noqa: E731
        for mount in template["container"]["volumeMounts"]:
            if mount["mountPath"].startswith(POD):
                here(mount["mountPath"]).mkdir(parents=True)
        for item in template["inputs"].get("artifacts", []):
            if item["name"] in files:
                copy(files[item["name"]], here(item["path"]))
            else:
                assert item.get("optional"), f"task {task}: artifact {item['name']} was not supplied"
        container = template["container"]
        command = [part.replace(f"{POD}/", f"{root}/") for part in (*container["command"], *container.get("args", []))]
        log = self.folder / "logs" / task
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for item in container.get("env", []):
            if "value" in item:
                environment[item["name"]] = item["value"]
            else:  # no secret and no ConfigMap is there
                assert all(source["optional"] for source in item["valueFrom"].values()), f"{item['name']}: no such key"
        limit = template.get("activeDeadlineSeconds")
        with log.open("wb") as file:
            try:
                code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit)
            except subprocess.TimeoutExpired:
                return ("Failed", 143, LATE), None
        if code.returncode:
            return ("Failed", code.returncode, f"main: Error (exit code {code.returncode})"), None
        parameters = {}
        for item in template["outputs"]["parameters"]:
            path = here(item["valueFrom"]["path"])
            parameters[item["name"]] = path.read_text() if path.is_file() else item["valueFrom"]["default"]
        artifacts = {}
        for item in template["outputs"].get("artifacts", []):
            artifacts[item["name"]] = self.folder / "artifacts" / name / item["name"]
            copy(here(item["path"]), artifacts[item["name"]])
        shutil.rmtree(root)  # podGC
        return ("Succeeded", 0, ""), (parameters, artifacts)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
