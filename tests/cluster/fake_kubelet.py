"""A stand-in for nodes and Argo's executor: it ends pods that no node has, and reports what their steps should make.

It writes what a kubelet and argoexec write: the pod's status, and the WorkflowTaskResult of its node, the latter as the
executor's service account (so its rights count). The outputs are those of tests/orchestration/stand_in_launcher.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

from stereo_core.orchestration.servers import Kubernetes, SubmitError

FAKE = os.environ.get("FAKE_KUBELET") == "1"
SCHEDULER = "stand-in"  # nobody's: the pods stay without a node
STAND_IN = Path(__file__).parents[1] / "orchestration/stand_in_launcher.py"
OUTPUTS = "/stereo/outputs"
NODE_ID, NODE_NAME = "workflows.argoproj.io/node-id", "workflows.argoproj.io/node-name"
WORKFLOW, COMPLETE = "workflows.argoproj.io/workflow", "workflows.argoproj.io/report-outputs-completed"
REFUSED = "init"  # an end: the object storage refuses what the init container asks for
GONE = "gone"  # an end: the pod is deleted


def step_of(pod: dict) -> tuple[str, int]:
    """A pod's step and the number of its attempt, by its node's name: demo-x7k2p.train.train(0)."""
    last = pod["metadata"]["annotations"][NODE_NAME].rsplit(".", 1)[-1]
    step, attempt = re.fullmatch(r"(.*?)(?:\((\d+)\))?", last).groups()
    return step, int(attempt or 0)


def template_of(pod: dict) -> dict:
    """The template that argoexec would read."""
    environment = {e["name"]: e.get("value") for c in pod["spec"]["initContainers"] for e in c.get("env", [])}
    return json.loads(environment["ARGO_TEMPLATE"])


def outputs_of(pod: dict) -> dict:
    """The outputs of a pod whose step ended well, as Argo's status has them."""
    template = template_of(pod)
    main = next(c for c in pod["spec"]["containers"] if c["name"] == "main")
    action, message = main["args"][-2:]
    with tempfile.TemporaryDirectory() as folder:
        message = message.replace("$$", "$").replace(f"{OUTPUTS}/", f"{folder}/")
        subprocess.run([sys.executable, "-I", STAND_IN, action, message], check=True)
        parameters = [
            {"name": p["name"], "value": Path(p["valueFrom"]["path"].replace(OUTPUTS, folder)).read_text()}
            for p in template["outputs"].get("parameters", [])
        ]
    place = template["archiveLocation"]["s3"]["key"]
    artifacts = [
        {"name": a["name"], "path": a["path"], "s3": {"key": a.get("s3", {}).get("key") or f"{place}/{a['name']}.tgz"}}
        for a in template["outputs"].get("artifacts", [])
    ]
    return {"parameters": parameters, "artifacts": artifacts, "exitCode": "0"}


def task_result(pod: dict, outputs: dict) -> dict:
    """What argoexec reports of a pod."""
    meta = pod["metadata"]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTaskResult",
        "metadata": {
            "name": meta["annotations"][NODE_ID],
            "labels": {WORKFLOW: meta["labels"][WORKFLOW], COMPLETE: "true"},
            "ownerReferences": meta["ownerReferences"],
        },
        "outputs": outputs,
    }


def status_of(pod: dict, end: int | str) -> dict:
    """A pod's status after an end: an exit code, or REFUSED."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"

    def ended(name: str, code: int, message: str = "") -> dict:
        image = next(
            c["image"] for c in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]) if c["name"] == name
        )
        told = {"exitCode": code, "reason": "Error" if code else "Completed", "startedAt": now, "finishedAt": now}
        state = {"terminated": told | ({"message": message} if message else {})}
        return {"name": name, "image": image, "imageID": "", "ready": False, "restartCount": 0, "state": state}

    if end == REFUSED:
        init = ended("init", 64, "failed to get images: Access Denied.")
        return {"phase": "Failed", "initContainerStatuses": [init]}
    statuses = [ended("main", end), ended("wait", 0)]
    return {"phase": "Failed" if end else "Succeeded", "containerStatuses": statuses}


class FakeKubelet(threading.Thread):
    """Ends every pod of a namespace that has no node.

    Args:
        namespace: Where.
        account: The executor's, whose rights count.
        ends: Step -> the ends of its attempts, from the first on; those without one end well. A test changes it.
    """

    def __init__(self, namespace: str, account: str, ends: dict[str, list[int | str]]):
        super().__init__(daemon=True)
        self.server = Kubernetes()
        self.namespace, self.ends = namespace, ends
        self.account = f"system:serviceaccount:{namespace}:{account}"
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        pods, done = f"/api/v1/namespaces/{self.namespace}/pods", set()
        try:
            while not self.stopped.wait(0.5):
                for pod in self.server.call("GET", pods, "list pods").get("items", []):
                    new = pod["metadata"]["uid"] not in done and pod["spec"].get("schedulerName") == SCHEDULER
                    if new and NODE_NAME in pod["metadata"].get("annotations", {}):
                        done.add(pod["metadata"]["uid"])
                        self._end(pod, f"{pods}/{pod['metadata']['name']}")
        except Exception as error:  # told to the test
            self.error = error

    def _end(self, pod: dict, path: str) -> None:
        step, attempt = step_of(pod)
        end = dict(enumerate(self.ends.get(step, []))).get(attempt, 0)
        if end == GONE:
            self.server.call("DELETE", path, "delete a pod")
            return
        results = f"/apis/argoproj.io/v1alpha1/namespaces/{self.namespace}/workflowtaskresults"
        outputs = outputs_of(pod) if end == 0 else {"exitCode": str(end)}
        if end != REFUSED:
            said = task_result(pod, outputs)
            self.server.call("POST", results, "report outputs", said, headers={"Impersonate-User": self.account})
        try:
            body = {"status": status_of(pod, end)}
            self.server.call("PATCH", f"{path}/status", "end a pod", body, kind="merge-patch+json")
        except SubmitError as error:
            if "404" not in str(error):  # the Workflow was stopped
                raise
