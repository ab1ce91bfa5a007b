"""What the tests of Kubeflow Pipelines share: a configuration, and a folder to type commands in."""

import json
from pathlib import Path

import pytest
from celebdit_testing.submissions import DIGESTS

from components.environment import KFP_COOKIES, KFP_ENDPOINT, KFP_NAMESPACE, KFP_TOKEN
from pipeline.config import RunConfig, load_config


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("smoke")


@pytest.fixture(scope="module", autouse=True)
def every_module_compiles_once(compiled_once: None) -> None:
    """Compile once without asking for it in each module of this folder."""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "images.lock.json"
    path.write_text(json.dumps({"images": DIGESTS, "git_commit": "abc", "pins_sha256": {"cpu": "1", "gpu": "2"}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-cluster"))  # not that of the user
    for name in (KFP_ENDPOINT, KFP_NAMESPACE, KFP_TOKEN, KFP_COOKIES):
        monkeypatch.delenv(name, raising=False)
    return path
