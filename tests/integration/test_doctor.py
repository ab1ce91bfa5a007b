"""What the doctor says of clusters in every state, against servers that speak the real APIs."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from celebdit_testing.faults import fault_proxy
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.kfp_server import FakeKfp, kfp_server
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY

from components import deployment as names
from components.environment import KFP_NAMESPACE, KFP_TOKEN
from pipeline.cli import main
from pipeline.services import Endpoints, Services

MANIFESTS = Path(__file__).parents[2] / "docker" / "kubernetes"
PASSWORD = "canary-mlflow-password-0123"
INSIDE = "http://mlflow.celebdit.svc:5000"
TOKEN = "canary-mlflow-token-0123"
DIGEST = "sha256:" + "a" * 64


class Registry(Handler):
    """A registry that has one image, and the embedded MLflow beside it, which asks for a password here."""

    open_to_all = False
    mlflow: Endpoints | None = None

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer(200 if self.path == f"/v2/team/celebdit/manifests/{DIGEST}" else 401 if "private" in self.path else 404)

    def _forward(self) -> None:
        content = self.content()
        logins = ("Basic " + base64.b64encode(f"steps:{PASSWORD}".encode()).decode(), f"Bearer {TOKEN}")
        if self.headers.get("Authorization") not in logins and not self.open_to_all:
            self.answer(401)
            return
        if self.mlflow is None:
            self.answer(200)
            return
        headers = {"Authorization": f"Bearer {self.mlflow.environment['MLFLOW_TRACKING_TOKEN']}"}
        if "Content-Type" in self.headers:
            headers["Content-Type"] = self.headers["Content-Type"]
        answer = urllib3.request(self.command, f"{self.mlflow.mlflow_url}{self.path}", headers=headers, body=content, redirect=False)
        self.answer(answer.status, answer.data, answer.headers.get("Content-Type", "text/plain"))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 - named by the library


@pytest.fixture
def registry() -> Iterator[str]:
    with serving(Registry) as address:
        yield address.removeprefix("http://")


def encoded(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


@pytest.fixture
def kfp() -> Iterator[FakeKfp]:
    with kfp_server() as fake:
        yield fake


@pytest.fixture
def kube(tmp_path: Path, registry: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKube]:
    """A cluster on which nothing is missing, whose MLflow cannot be reached from here."""
    with kube_server(tmp_path) as fake:
        fake.load_rights(MANIFESTS / "pipeline" / "rbac.yaml")
        fake.put("namespaces", "kubeflow", metadata={"labels": {"pod-security.kubernetes.io/enforce": "baseline"}})
        fake.put("serviceaccounts", names.SERVICE_ACCOUNT)
        fake.put("secrets", names.S3_SECRET, data=encoded(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY))
        fake.put("secrets", names.MLFLOW_SECRET, data=encoded(MLFLOW_TRACKING_USERNAME="steps", MLFLOW_TRACKING_PASSWORD=PASSWORD))
        settings = {"CELEBDIT_STORE": "s3://bucket/doctor", "MLFLOW_TRACKING_URI": INSIDE, "AWS_ENDPOINT_URL": moto_endpoint}
        fake.put("configmaps", names.CONFIG_MAP, data=settings)
        fake.put("clustertrainingruntimes", names.TRAINING_RUNTIME)
        fake.put("nodes", "cpu-0", status={"allocatable": {"cpu": "4", "memory": "8Gi"}})
        taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
        for index in range(2):
            allocatable = {"nvidia.com/gpu": "8"}
            fake.put(
                "nodes",
                f"gpu-{index}",
                metadata={"labels": {"pool": "h200"}},
                spec={"taints": [taint]},
                status={"allocatable": allocatable},
            )
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "admin.kubeconfig"))
        for name in (KFP_TOKEN, KFP_NAMESPACE, "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "CELEBDIT_STORE"):
            monkeypatch.delenv(name, raising=False)
        write_lock(tmp_path, f"{registry}/team/celebdit@{DIGEST}")
        monkeypatch.chdir(tmp_path)
        yield fake


@pytest.fixture
def outside(kube: FakeKube, registry: str) -> None:
    """MLflow at an address that can be reached from here."""
    kube.objects["configmaps", names.CONFIG_MAP]["data"]["MLFLOW_TRACKING_URI"] = f"http://{registry}"


def write_lock(folder: Path, image: str) -> None:
    lock = {"images": {"cpu": image, "gpu": image}, "git_commit": "abc", "pins_sha256": {}}
    (folder / "images.lock.json").write_text(json.dumps(lock))


def diagnose(capsys: pytest.CaptureFixture[str], kfp: FakeKfp, *overrides: str) -> tuple[int, dict[str, list[dict[str, Any]]], str]:
    cluster_overrides = ["resources.device=cuda", "resources.processes=8", "resources.nodes=2", *overrides]
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--cluster", "--endpoint", kfp.url, "--json", *cluster_overrides])
    out, err = capsys.readouterr()
    for secret in (SECRET_KEY, PASSWORD, TOKEN):
        assert secret not in out + err
    checks: dict[str, list[dict[str, Any]]] = {}
    assert "checks" in json.loads(out), err
    for check in json.loads(out)["checks"]:
        checks.setdefault(check["name"], []).append(check)
    return int(left.value.code or 0), checks, err


@pytest.mark.usefixtures("outside")
def test_a_cluster_on_which_nothing_is_missing(
    kube: FakeKube, kfp: FakeKfp, embedded: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Registry, "mlflow", embedded.wait())
    code, checks, err = diagnose(capsys, kfp)
    assert {check["state"] for same_name in checks.values() for check in same_name} == {"ok"}, err
    assert code == 0
    assert set(checks) == {
        "kubeflow",
        "kubernetes",
        "namespace",
        "rights",
        "secrets",
        "settings",
        "storage",
        "mlflow",
        "images",
        "gpus",
        "requests",
        "trainer",
        "licence",
    }
    assert "version 2.17.0" in checks["kubeflow"][0]["found"]
    assert "no problems found" in err


def test_the_secret_and_the_claims_of_the_servers_have_a_line(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    assert "servers" not in diagnose(capsys, kfp)[1], "they are not on this cluster"
    kube.put("namespaces", "celebdit")
    assert [check["state"] for check in diagnose(capsys, kfp)[1]["servers"]] == ["unknown"], "they may not be read"
    kube.other_namespaces = frozenset({"celebdit"})
    kube.put("persistentvolumeclaims", "postgres", status={"phase": "Pending"})
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    states = {check["found"]: check["state"] for check in checks["servers"]}
    assert states == {
        "secret mlflow-server does not exist in celebdit: MLflow does not start": "fail",
        "volume claim postgres is Pending": "fail",
        "volume claim s3 does not exist in celebdit": "unknown",
    }
    kube.put("secrets", "mlflow-server")
    for name in ("postgres", "s3"):
        kube.put("persistentvolumeclaims", name, status={"phase": "Bound"})
    assert [check["state"] for check in diagnose(capsys, kfp)[1]["servers"]] == ["ok"]


def test_a_step_that_no_node_can_take_is_named_with_its_request(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_nodes = [kube.objects["nodes", f"gpu-{index}"] for index in range(2)]
    for node in gpu_nodes:
        node["status"]["allocatable"] |= {"cpu": "15500m", "memory": f"{120 * 2**20}Ki"}
    wide = ["resources.cpu=16000m", "resources.memory=64Gi"]
    code, checks, _ = diagnose(capsys, kfp, *wide)
    (check,) = checks["requests"]
    assert (code, check["state"]) == (2, "fail")
    assert check["found"].startswith("train, evaluate would stay Pending: each requests 16000m CPU and 64Gi, the largest node")
    assert "15500m CPU and 120.0Gi (gpu-" in check["found"]
    assert "resources.cpu" in check["fix"]
    kube.objects["nodes", "cpu-0"]["status"]["allocatable"]["cpu"] = "400m"
    _, checks, _ = diagnose(capsys, kfp, "resources.cpu=15500m")
    (check,) = checks["requests"]
    assert "preflight, ingest, train, gate, register, finalize would stay Pending: each requests 500m" in check["found"]
    assert "resources.light_cpu" in check["fix"]
    _, checks, _ = diagnose(capsys, kfp, *wide, "resources.light_cpu=400m")
    assert [check["state"] for check in checks["requests"]] == ["fail"]
    assert diagnose(capsys, kfp, "resources.light_cpu=400m")[1]["requests"][0]["state"] == "ok"


def break_rights(kube: FakeKube) -> None:
    kube.rules["pipeline-runner"] = [rule for rule in kube.rules["pipeline-runner"] if "trainjobs" not in rule["resources"]]


def break_secret(kube: FakeKube) -> None:
    kube.objects["secrets", names.S3_SECRET]["data"] = encoded(AWS_ACCESS_KEY_ID=ACCESS_KEY)


def break_bucket(kube: FakeKube) -> None:
    kube.objects["configmaps", names.CONFIG_MAP]["data"]["CELEBDIT_STORE"] = "s3://no-such-bucket/x"


def taint_nodes(kube: FakeKube) -> None:
    for index in range(2):
        kube.objects["nodes", f"gpu-{index}"]["spec"]["taints"].append({"key": "reserved", "effect": "NoExecute"})


KAGGLE = "data.source=kaggle://owner/faces"


@pytest.mark.parametrize(
    ("secret", "state", "message", "code"),
    [
        ({"KAGGLE_API_TOKEN": "canary-kaggle-token"}, "ok", "celebdit-kaggle has KAGGLE_API_TOKEN", 0),
        ({"KAGGLE_USERNAME": "somebody", "KAGGLE_KEY": "canary-kaggle-key"}, "ok", "has KAGGLE_USERNAME and KAGGLE_KEY", 0),
        ({"KAGGLE_USERNAME": "somebody", "KAGGLE_KEY": ""}, "fail", "has KAGGLE_USERNAME and no KAGGLE_KEY", 2),
        ({}, "unknown", "celebdit-kaggle has no credentials: sufficient if owner/faces is public", 0),
        (None, "unknown", "celebdit-kaggle has no credentials", 0),
    ],
)
def test_kaggles_credentials_are_looked_for_where_the_data_comes_from_there(
    kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], secret: dict[str, str] | None, state: str, message: str, code: int
) -> None:
    if secret is not None:
        kube.put("secrets", names.KAGGLE_SECRET, data=encoded(**secret))
    left, checks, err = diagnose(capsys, kfp, KAGGLE)
    (check,) = checks["kaggle"]
    assert (check["state"], left) == (state, code)
    assert message in check["found"]
    assert check["fix"] is None if state == "ok" else "create secret generic celebdit-kaggle" in check["fix"]
    assert "canary-kaggle" not in err
    assert "kaggle" not in diagnose(capsys, kfp)[1]


@pytest.mark.parametrize(("secret", "state"), [({"HF_TOKEN": "canary-hub-token"}, "ok"), ({}, "unknown"), (None, "unknown")])
def test_a_token_of_the_hub_is_looked_for_where_the_data_comes_from_there(
    kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], secret: dict[str, str] | None, state: str
) -> None:
    if secret is not None:
        kube.put("secrets", names.HUB_SECRET, data=encoded(**secret))
    left, checks, err = diagnose(capsys, kfp, "data.source=hf://datasets/owner/faces")
    (check,) = checks["hub"]
    assert (check["state"], left) == (state, 0)
    assert check["fix"] is None if state == "ok" else "create secret generic celebdit-hub" in check["fix"]
    assert "canary-hub" not in err
    assert "hub" not in diagnose(capsys, kfp)[1]


@pytest.mark.parametrize(
    ("damage", "name", "message", "fix"),
    [
        (break_rights, "rights", "may not create trainjobs, get trainjobs, delete trainjobs", "celebdit-training"),
        (lambda kube: kube.objects.pop(("serviceaccounts", "pipeline-runner")), "rights", "no service account", "--namespace"),
        (lambda kube: kube.objects.pop(("namespaces", "kubeflow")), "namespace", "does not exist", "--namespace"),
        (break_secret, "secrets", "celebdit-s3 has no AWS_SECRET_ACCESS_KEY", "create secret generic celebdit-s3"),
        (lambda kube: kube.objects.pop(("secrets", names.MLFLOW_SECRET)), "secrets", "celebdit-mlflow does not exist", "create secret"),
        (lambda kube: kube.objects.pop(("configmaps", names.CONFIG_MAP)), "settings", "has no CELEBDIT_STORE", "overlay"),
        (break_bucket, "storage", "no-such-bucket", None),
        (taint_nodes, "gpus", "have the taint reserved", "resources.tolerations"),
        (
            lambda kube: kube.objects.pop(("nodes", "gpu-1")),
            "gpus",
            "1 node(s) have 8 nvidia.com/gpu, resources.nodes is 2",
            "resources.nodes",
        ),
        (
            lambda kube: kube.objects.pop(("clustertrainingruntimes", names.TRAINING_RUNTIME)),
            "trainer",
            "no ClusterTrainingRuntime",
            "install",
        ),
    ],
)
def test_a_missing_object_is_named_with_its_fix(
    kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], damage: Any, name: str, message: str, fix: str | None
) -> None:
    damage(kube)
    code, checks, err = diagnose(capsys, kfp)
    failed = [check for check in checks[name] if check["state"] == "fail"]
    assert code == 2
    assert any(message in check["found"] for check in failed), err
    assert fix is None or any(fix in check["fix"] for check in failed)
    assert f"FAIL     {name}" in err


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("user", [{}, {"MLFLOW_TRACKING_USERNAME": "steps"}])
def test_a_token_for_mlflow_is_enough(
    kube: FakeKube,
    kfp: FakeKfp,
    embedded: Services,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    user: dict[str, str],
) -> None:
    monkeypatch.setattr(Registry, "mlflow", embedded.wait())
    kube.objects["secrets", names.MLFLOW_SECRET]["data"] = encoded(MLFLOW_TRACKING_TOKEN=TOKEN, **user)
    code, checks, err = diagnose(capsys, kfp)
    assert code == 0, err
    assert "accepts what the steps do" in checks["mlflow"][0]["found"]


def test_an_identity_of_the_cloud_needs_no_keys(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    del kube.objects["secrets", names.S3_SECRET]
    role = "arn:aws:iam::111122223333:role/celebdit"
    kube.objects["serviceaccounts", names.SERVICE_ACCOUNT].setdefault("metadata", {})["annotations"] = {"eks.amazonaws.com/role-arn": role}
    code, checks, err = diagnose(capsys, kfp)
    assert code == 0, err
    assert checks["secrets"][0]["found"] == f"pipeline-runner is eks.amazonaws.com/role-arn={role}: celebdit-s3 is not needed"
    assert checks["storage"][0]["state"] == "unknown", "the identity is in the cluster alone"


def test_temporary_credentials_of_the_steps_are_tried_with_their_token(
    kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "canary-of-the-shell")
    with fault_proxy(moto_endpoint) as proxy:
        kube.objects["configmaps", names.CONFIG_MAP]["data"]["AWS_ENDPOINT_URL"] = proxy.endpoint
        assert diagnose(capsys, kfp)[0] == 0
        assert proxy.session_tokens == [], "the token of the shell does not belong to the keys of the steps"
        kube.objects["secrets", names.S3_SECRET]["data"] |= encoded(AWS_SESSION_TOKEN="canary-of-the-steps")
        assert diagnose(capsys, kfp)[0] == 0
        assert set(proxy.session_tokens) == {"canary-of-the-steps"}
    assert os.environ["AWS_SESSION_TOKEN"] == "canary-of-the-shell"


def test_a_setting_that_reaches_no_step_is_named(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    kube.objects["configmaps", names.CONFIG_MAP]["data"] |= {"AWS_S3_ADDRESSING_STYLE": "path", "AWS_S3_ADRESSING_STYLE": "path"}
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "has AWS_S3_ADRESSING_STYLE, which no step gets" in checks["settings"][0]["found"]


def test_gpu_nodes_are_matched_by_count_label_and_toleration(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    taint_nodes(kube)
    assert diagnose(capsys, kfp, 'resources.tolerations=[{key="reserved"}]')[1]["gpus"][0]["state"] == "ok"
    assert "no node has 16" in diagnose(capsys, kfp, "resources.processes=16", "training.batch_images=32")[1]["gpus"][0]["found"]
    assert "has the labels" in diagnose(capsys, kfp, 'resources.node_selector={pool="a100"}')[1]["gpus"][0]["found"]
    assert diagnose(capsys, kfp, "resources.device=cpu")[1]["gpus"][0]["state"] == "ok"


def test_images_that_no_node_can_pull_are_found(
    kube: FakeKube, kfp: FakeKfp, registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image, state in (
        (f"{registry}/team/other@{DIGEST}", "fail"),
        (f"{registry}/private/celebdit@{DIGEST}", "unknown"),
        (f"localhost/celebdit@{DIGEST}", "fail"),
        (f"127.0.0.1:9/team/celebdit@{DIGEST}", "unknown"),
    ):
        write_lock(tmp_path, image)
        assert diagnose(capsys, kfp)[1]["images"][0]["state"] == state, image
    (tmp_path / "images.lock.json").unlink()
    assert "make images" in diagnose(capsys, kfp)[1]["images"][0]["fix"]


@pytest.mark.usefixtures("outside")
def test_a_password_that_mlflow_does_not_accept_is_found(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    kube.objects["secrets", names.MLFLOW_SECRET]["data"] |= encoded(MLFLOW_TRACKING_PASSWORD="wrong-password")
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "does not accept the credentials" in checks["mlflow"][0]["found"]
    assert "user of MLflow" in checks["mlflow"][0]["fix"]


def test_an_mlflow_that_only_the_cluster_reaches_is_unknown(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    code, checks, _ = diagnose(capsys, kfp)
    assert (code, checks["mlflow"][0]["state"]) == (0, "unknown")
    assert f"{INSIDE} cannot be reached from here" in checks["mlflow"][0]["found"]


@pytest.mark.usefixtures("outside")
def test_an_mlflow_that_lets_anybody_in_is_found(
    kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "open_to_all", True)
    assert "accepts anonymous requests" in diagnose(capsys, kfp)[1]["mlflow"][0]["found"]


def test_an_old_kubeflow_and_one_that_is_not_there_are_found(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    kfp.version = "2.3.0"
    assert "upgrade it" in diagnose(capsys, kfp)[1]["kubeflow"][0]["fix"]
    kfp.url = "http://127.0.0.1:9"
    assert "is unavailable" in diagnose(capsys, kfp)[1]["kubeflow"][0]["found"]


def test_a_user_without_read_permission_gets_an_error_that_says_so(
    kube: FakeKube, kfp: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nobody.kubeconfig"))
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "does not allow to get secrets" in checks["secrets"][0]["found"]


def test_this_machine_is_checked_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CELEBDIT_STORE", "s3://bucket/x")
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--home", str(tmp_path), "--json"])
    out, _ = capsys.readouterr()
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert left.value.code == 2
    assert (checks["endpoints"]["state"], checks["disk"]["state"], checks["python"]["state"]) == ("fail", "ok", "ok")
