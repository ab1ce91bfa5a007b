"""What the doctor says of the credentials of a cluster's steps: for storage, MLflow, Kaggle and the Hugging Face hub."""

import os

import pytest
from celebdit_testing.diagnosed_clusters import TOKEN, Registry, diagnose, encoded
from celebdit_testing.faults import fault_proxy
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.kube_server import FakeKube

from components import deployment as names
from pipeline.services import Services

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


@pytest.mark.usefixtures("outside")
def test_a_password_that_mlflow_does_not_accept_is_found(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    kube.objects["secrets", names.MLFLOW_SECRET]["data"] |= encoded(MLFLOW_TRACKING_PASSWORD="wrong-password")
    code, checks, _ = diagnose(capsys, kfp)
    assert code == 2
    assert "does not accept the credentials" in checks["mlflow"][0]["found"]
    assert "user of MLflow" in checks["mlflow"][0]["fix"]
