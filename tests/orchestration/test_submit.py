"""Submission: the real clients against small servers in this process that speak, or refuse, the few calls they make.

No Kubeflow and no Kubernetes can be had here; what the servers answer is what their APIs' descriptions say.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import certifi
import pytest
import yaml
from click.testing import CliRunner
from kubernetes.config import incluster_config
from pipelines_command import command

from stereo_core.errors import UserError
from stereo_core.orchestration.cli import cli
from stereo_core.orchestration.graph import load_pipeline
from stereo_core.orchestration.submit import SubmitError, check_cron, kubeflow_run

DEMO = Path(__file__).parents[2] / "pipelines/demo/compiled/demo.yaml"
TOKEN = "s3cr3t-t0ken"


class Server(ThreadingHTTPServer):
    """Notes each call; answers with what `answers` has for (method, path), or with `refusal`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.calls: list[tuple[str, str, dict, object, dict]] = []
        self.answers: dict[tuple[str, str], object] = {}
        self.refusal: tuple[int, object] | None = None


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        server = self.server
        server.calls.append((self.command, parts.path, query, json.loads(body or b"null"), dict(self.headers)))
        status, said = server.refusal or (200, server.answers.get((self.command, parts.path)))
        if said is None and self.command in ("PATCH", "POST"):  # as Kubernetes does: the resource, named
            said = server.calls[-1][3]
            said["metadata"]["name"] = said["metadata"].get("name") or said["metadata"]["generateName"] + "x7k2p"
        data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(said, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def kubeflow(server, monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    server.answers = {
        ("GET", "/apis/v2beta1/experiments"): {},
        ("POST", "/apis/v2beta1/experiments"): {"experiment_id": "e1", "display_name": "night"},
        ("POST", "/apis/v2beta1/runs"): {"run_id": "r1"},
        ("POST", "/apis/v2beta1/recurringruns"): {"recurring_run_id": "c1"},
    }
    return server


@pytest.fixture
def kubernetes(server, tmp_path, monkeypatch):
    """The server as the cluster of a kubeconfig."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": TOKEN}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return server


def submit(*options: str):
    result = CliRunner().invoke(cli, ["submit", str(DEMO), *options])
    assert TOKEN not in result.output + str(result.exception)
    return result


def refused(*options: str) -> str:
    """The message of a submission that a user's error ends; the command line shows it and exits 2."""
    result = submit(*options)
    assert isinstance(result.exception, UserError), result.exception or result.output
    return str(result.exception)


ARGO = ("--argo", "--artifact-repository", "s3://artifacts/stereo", "--endpoint", "http://minio:9000")

# ---- what would be sent


def test_nothing_is_sent_until_it_is_asked_for(kubeflow, kubernetes):
    shown = submit("--host", kubeflow.url, "--param", "num_epochs=3", "--experiment", "night")
    plan = yaml.safe_load(shown.stdout)
    assert (plan["server"], plan["experiment"]) == (kubeflow.url, "night")
    assert plan["run"]["runtime_config"] == {"parameters": {"num_epochs": 3}}
    assert "demo.yaml (sha256 " in plan["run"]["pipeline_spec"]
    shown = submit(*ARGO, "--cron", "0 3 * * *")
    kinds = [document["kind"] for document in yaml.safe_load_all(shown.stdout)]
    assert kinds[0] == "ConfigMap" and kinds[-1] == "CronWorkflow" and set(kinds[1:-1]) == {"WorkflowTemplate"}
    assert "nothing was sent" in shown.stderr
    assert kubeflow.calls == []


# ---- Kubeflow


@pytest.mark.parametrize("uri", ["/data/kitti", "file:///data/kitti", "https://host/kitti"])
def test_kubeflow_does_not_see_this_machine(uri):
    pipeline = load_pipeline(DEMO.parents[2] / "train_to_engine/compiled/train_to_engine.yaml")
    with pytest.raises(SubmitError, match=rf"{uri}; use s3://, gs://, minio://"):
        kubeflow_run(pipeline, {"images_uri": uri})
    run = kubeflow_run(pipeline, {"images_uri": "gs://data/kitti"})
    assert run["runtime_config"]["parameters"] == {"images_uri": "gs://data/kitti"}


def test_a_run_on_kubeflow(kubeflow):
    done = submit("--host", f"{kubeflow.url}/", "--send", "-p", "num_epochs=3", "-n", "team", "--experiment", "night")
    assert done.stdout.strip() == f"{kubeflow.url}/#/runs/details/r1"
    assert [call[:2] for call in kubeflow.calls] == [
        ("GET", "/apis/v2beta1/experiments"),
        ("POST", "/apis/v2beta1/experiments"),
        ("POST", "/apis/v2beta1/runs"),
    ]
    looked, made, run = kubeflow.calls
    (predicate,) = json.loads(looked[2]["filter"])["predicates"]
    assert predicate == {"operation": "EQUALS", "key": "display_name", "stringValue": "night"}
    assert looked[2]["namespace"] == "team" and made[3] == {"display_name": "night", "namespace": "team"}
    spec, platform = yaml.safe_load_all(DEMO.read_text())
    assert run[3] == {
        "display_name": "demo",
        "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform},
        "runtime_config": {"parameters": {"num_epochs": 3}},
        "experiment_id": "e1",
    }
    assert {call[4]["authorization"] for call in kubeflow.calls} == {f"Bearer {TOKEN}"}


def test_a_recurring_run_on_kubeflow_in_an_experiment_that_is_there(kubeflow):
    kubeflow.answers["GET", "/apis/v2beta1/experiments"] = {"experiments": [{"experiment_id": "e9"}]}
    options = ("--cron", "0 3 * * 1", "--name", "nightly", "--service-account", "stereo-kfp")
    done = submit("--host", kubeflow.url, "--send", *options)
    assert done.stdout.strip() == f"{kubeflow.url}/#/recurringrun/details/c1"
    assert [call[:2] for call in kubeflow.calls][1:] == [("POST", "/apis/v2beta1/recurringruns")]
    run = kubeflow.calls[-1][3]
    assert run["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}  # with seconds, as Kubeflow has it
    assert (run["experiment_id"], run["display_name"], run["service_account"]) == ("e9", "nightly", "stereo-kfp")
    assert (run["mode"], run["max_concurrency"], run["no_catchup"]) == ("ENABLE", 1, True)


def test_hardware_profiles_go_along(kubeflow, tmp_path):
    from kfp import compiler, dsl
    from stereo_components import synthesize
    from stereo_pipelines.profiles import PROFILES, apply

    @dsl.pipeline(name="placed")
    def placed():
        apply(synthesize(num_scenes=1), PROFILES["h100"])

    path = tmp_path / "placed.yaml"
    compiler.Compiler().compile(placed, str(path))
    done = CliRunner().invoke(cli, ["submit", str(path), "--host", kubeflow.url, "--send"])
    assert done.exit_code == 0, done.exception
    spec, platform = yaml.safe_load_all(path.read_text())
    assert kubeflow.calls[-1][3]["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((403, {"error": f"user may not list, token {TOKEN}"}), "403 Forbidden: user may not list, token ***"),
        ((401, "<html>who are you?</html>"), "401 Unauthorized: <html>who are you?</html>; the credentials are"),
        ((404, {"message": "not found"}), "404 Not Found: not found; the server does not know"),
        ((500, {"error": "database is down"}), "500 Internal Server Error: database is down"),
        ((200, "<html>Log in</html>"), "did not answer with JSON; it may be a login page"),
        ((200, {"id": "of another version"}), "no experiment_id; is this server Kubeflow Pipelines 2?"),
    ],
)
def test_a_kubeflow_that_refuses(kubeflow, refusal, words):
    kubeflow.refusal = refusal
    message = refused("--host", kubeflow.url, "--send")
    assert kubeflow.url in message and words in message
    assert "/apis/v2beta1/runs" not in {call[1] for call in kubeflow.calls}


def test_an_answer_without_a_run_is_no_success(kubeflow):
    kubeflow.answers["POST", "/apis/v2beta1/runs"] = {"code": 3}
    assert "no run_id" in refused("--host", kubeflow.url, "--send")


# ---- Argo


def test_a_workflow_on_kubernetes(kubernetes):
    done = submit(*ARGO, "--send", "--param", "num_epochs=3")
    assert done.exit_code == 0, done.exception
    shown = list(yaml.safe_load_all(submit(*ARGO, "--param", "num_epochs=3").stdout))
    assert [call[3]["kind"] for call in kubernetes.calls] == [document["kind"] for document in shown]
    *applied, started = kubernetes.calls
    argo = "/apis/argoproj.io/v1alpha1/namespaces/stereo"
    assert applied[0][:2] == ("PATCH", "/api/v1/namespaces/stereo/configmaps/demo-artifacts")
    assert applied[1][1] == f"{argo}/workflowtemplates/{shown[1]['metadata']['name']}"
    for method, _, query, _, headers in applied:
        assert method == "PATCH" and query == {"fieldManager": "stereo-pipelines", "force": "true"}
        assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert started[:2] == ("POST", f"{argo}/workflows")
    assert started[3]["spec"]["serviceAccountName"] == "stereo-argo"
    values = {p["name"]: p["value"] for p in started[3]["spec"]["arguments"]["parameters"]}
    assert values["num_epochs"] == "3" and values["backend"] == "onnxruntime"
    assert done.stdout.splitlines()[-1] == "workflow/demo-x7k2p"
    assert {call[4]["authorization"] for call in kubernetes.calls} == {f"Bearer {TOKEN}"}


def test_a_workflow_for_a_server_of_another_kind(kubernetes):
    done = submit(*ARGO, "--argo-version", "3.7", "--no-cache")
    assert done.exit_code == 0, done.exception
    assert "memoize" not in done.stdout and "memoize" in submit(*ARGO).stdout
    assert "key: unused" in submit(*ARGO, "--argo-version", "3.7").stdout


def test_a_cron_workflow_is_brought_up_to_date(kubernetes):
    done = submit(*ARGO, "--send", "--cron", "0 3 * * *", "--namespace", "team")
    method, path, _, body, _ = kubernetes.calls[-1]
    assert (method, path) == ("PATCH", "/apis/argoproj.io/v1alpha1/namespaces/team/cronworkflows/demo")
    assert body["spec"]["schedules"] == ["0 3 * * *"]
    assert done.stdout.splitlines()[-1] == "cronworkflow/demo"


def test_a_kubernetes_that_refuses(kubernetes):
    status = {"kind": "Status", "message": f"configmaps is forbidden for {TOKEN}", "code": 403}
    kubernetes.refusal = (403, status)
    message = refused(*ARGO, "--send")
    assert "create ConfigMap demo-artifacts in stereo: 403 Forbidden: configmaps is forbidden for ***" in message
    assert len(kubernetes.calls) == 1  # nothing was started


@pytest.fixture
def certificate(tmp_path):
    """Of 127.0.0.1, with its key, signed by itself."""
    key, file = tmp_path / "key.pem", tmp_path / "ca.crt"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *subject, "-keyout", key, "-out", file], check=True, capture_output=True)
    return file, key


@pytest.fixture
def pod(server, certificate, tmp_path, monkeypatch):
    """This process as a pod of a cluster: the server by TLS, its certificate and a token as Kubernetes mounts them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate[0]))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return server


def test_a_workflow_from_a_pod(pod):
    done = submit(*ARGO, "--send")
    assert done.exit_code == 0, done.exception
    assert done.stdout.splitlines()[-1] == "workflow/demo-x7k2p"
    assert {call[4]["authorization"] for call in pod.calls} == {f"bearer {TOKEN}"}
    pod.refusal = (403, {"message": f"configmaps is forbidden for {TOKEN}"})
    assert "configmaps is forbidden for ***" in refused(*ARGO, "--send")


def test_a_server_with_another_certificate_gets_nothing(pod, monkeypatch):
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    message = refused(*ARGO, "--send")
    assert "cannot be reached" in message and "CERTIFICATE_VERIFY_FAILED" in message
    assert pod.calls == []


# ---- what is wrong before


@pytest.mark.parametrize("text", ["clusters: [\n", "- a list\n", "words\n", "\xff\xfe", ""])
def test_a_kubeconfig_that_is_none(kubernetes, tmp_path, text):
    (tmp_path / "config").write_bytes(text.encode("latin-1"))
    message = refused(*ARGO, "--send")
    assert "no cluster is configured" in message and f"now {tmp_path / 'config'}" in message and "\n" not in message


def test_servers_that_can_not_be_reached(server, kubernetes, monkeypatch, tmp_path):
    server.shutdown()
    server.server_close()
    assert "cannot be reached" in refused("--host", server.url, "--send")
    assert "cannot be reached" in refused(*ARGO, "--send")
    assert "no cluster is configured" in refused(*ARGO, "--send", "--context", "elsewhere")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert "no cluster is configured" in refused(*ARGO, "--send")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give --host URL"),
        (("--host", "http://k", "--argo"), "not both"),
        (("--argo",), "--artifact-repository"),
        (("--host", "http://k", "--secret", "keys"), "--secret: has no effect with --host"),
        (("--host", "http://k", "--no-cache"), "--no-cache: has no effect with --host"),
        ((*ARGO, "--name", "mine"), "--name: has no effect with --argo"),
        (("--host", "kubeflow.example"), "http[s]://HOST"),
        (("--host", f"https://me:{TOKEN}@kubeflow.example"), "set KFP_TOKEN instead"),
        (("--host", "http://k", "--cron", "0 0 3 * * *"), "five fields"),
        (("--host", "http://k", "--cron", "60 3 * * *"), "60 is not a valid minute; expected *, 0 to 59, a range"),
        ((*ARGO, "--cron", "0 3 * * 7"), "7 is not a valid weekday; expected *, 0 to 6 or sun to sat"),
        (("--host", "http://k", "--param", "num_epoch=3"), "did you mean num_epochs"),
    ],
)
def test_a_wrong_command_line(options, words):
    assert words in refused(*options)


@pytest.mark.parametrize(
    ("cron", "valid"),
    [
        ("*/15 0-6/2,22 1,15 JAN-mar mon-fri", True),
        ("05 00 ? * *", True),
        ("0 3 * * fri-mon", False),
        ("0 24 * * *", False),
        ("0 3 0 * *", False),
        ("0 3 * * 1-3-5", False),
        ("*/0 3 * * *", False),
        ("x y z a b", False),
        ("0 3, * * *", False),
    ],
)
def test_a_schedule_that_would_never_start_is_refused(cron, valid):
    """Argo and Kubeflow accept any text, and then start nothing."""
    with contextlib.nullcontext() if valid else pytest.raises(SubmitError, match="is not a valid"):
        check_cron("--cron", cron)


def test_exit_code_and_one_line():
    done = command("submit", DEMO)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stereo-pipelines: error: give --host URL") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--namespace", "My Team"),
        ("--namespace", "team.a"),
        ("--service-account", "my_account"),
        ("--secret", "Keys"),
        ("--priority-class", "high/"),
    ],
)
def test_a_name_that_kubernetes_refuses_is_refused_here(option, value):
    """Argo takes such a manifest and then starts no pod; Kubeflow's server answers with a stack of Go's errors."""
    line = ["submit", str(DEMO), "--argo", "--artifact-repository", "s3://a/b", option, value]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 2 and f"{value}: expected a name" in result.output, result.output
