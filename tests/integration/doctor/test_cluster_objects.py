"""What the doctor says of a cluster's objects: rights, secrets, settings and claims, each missing one with its fix."""

from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.diagnosed_clusters import Registry, diagnose, encoded, taint_nodes
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.servers import ACCESS_KEY

from components import deployment as names
from pipeline.services import Services


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


def break_rights(kube: FakeKube) -> None:
    kube.rules["pipeline-runner"] = [rule for rule in kube.rules["pipeline-runner"] if "trainjobs" not in rule["resources"]]


def break_secret(kube: FakeKube) -> None:
    kube.objects["secrets", names.S3_SECRET]["data"] = encoded(AWS_ACCESS_KEY_ID=ACCESS_KEY)


def break_bucket(kube: FakeKube) -> None:
    kube.objects["configmaps", names.CONFIG_MAP]["data"]["CELEBDIT_STORE"] = "s3://no-such-bucket/x"


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
        (taint_nodes, "gpus", "with the taint reserved", "resources.tolerations"),
        (
            lambda kube: kube.objects.pop(("nodes", "gpu-1")),
            "gpus",
            "1 node with 8 nvidia.com/gpu, resources.nodes is 2",
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


def test_a_setting_that_reaches_no_step_is_named(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    kube.objects["configmaps", names.CONFIG_MAP]["data"] |= {"AWS_S3_ADDRESSING_STYLE": "path", "AWS_S3_ADRESSING_STYLE": "path"}
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "has AWS_S3_ADRESSING_STYLE, which no step gets" in checks["settings"][0]["found"]


@pytest.mark.parametrize(("of_steps", "here", "state"), [("team-a", "", "unknown"), ("", "team-b", "unknown"), ("team-a", "team-a", "ok")])
def test_another_workspace_of_mlflow_than_that_of_the_steps_is_named(
    of_steps: str, here: str, state: str, kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.objects["configmaps", names.CONFIG_MAP]["data"] |= {"MLFLOW_WORKSPACE": of_steps}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_WORKSPACE", here)
    _, checks, _ = diagnose(capsys, kfp)
    (check,) = checks["settings"]
    assert check["state"] == state
    assert (state == "ok") or f"steps log into {of_steps or 'the default workspace'} of MLflow" in check["found"]


def test_a_user_without_read_permission_gets_an_error_that_says_so(
    kube: FakeKube, kfp: FakeKfp, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nobody.kubeconfig"))
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "does not allow to get secrets" in checks["secrets"][0]["found"]
