"""What the doctor says of servers that are old, unavailable or open to all, and of this machine without a cluster."""

import json
from pathlib import Path

import pytest
from celebdit_testing.diagnosed_clusters import INSIDE, Registry, diagnose
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.kube_server import FakeKube

from pipeline.cli import main


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
