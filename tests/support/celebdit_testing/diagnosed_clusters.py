"""Clusters that the doctor is asked about: an image registry with an MLflow beside it, and what the doctor says."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import urllib3
from celebdit_testing.http_server import Handler
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.servers import SECRET_KEY

from pipeline.cli import main
from pipeline.services import Endpoints

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


def encoded(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


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


def taint_nodes(kube: FakeKube) -> None:
    for index in range(2):
        kube.objects["nodes", f"gpu-{index}"]["spec"]["taints"].append({"key": "reserved", "effect": "NoExecute"})
