"""The oldest MLflow server that is supported does all that the steps need, and one just older is refused before anything is trained.

Both are real servers in environments of their own, which `make old-mlflow` installs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.mlflow_steps import register_without_weights
from celebdit_testing.servers import MlflowServer, mlflow_server
from celebdit_testing.steps import step_context

from components.errors import BadInput
from components.finalize import finalize
from components.preflight.preflight import run
from components.registry.client import CHALLENGER, Registry
from components.registry.rehearsal import rehearse
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.tracking.server_version import OLDEST_MLFLOW, check_server_version

ROOT = Path(__file__).parents[2]
OLDEST, TOO_OLD = (ROOT / ".venv" / name / "bin" / "python" for name in ("oldest-mlflow", "too-old-mlflow"))
pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(not (OLDEST.exists() and TOO_OLD.exists()), reason="the old servers are not installed: make old-mlflow"),
]


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("oldest"), python=OLDEST) as server:
        yield server


@pytest.fixture(scope="module")
def too_old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("too-old"), python=TOO_OLD) as server:
        yield server


def context_at(server: MlflowServer, folder: Path, endpoint: str) -> StepContext:
    return step_context("preflight", folder, f"s3://bucket/{folder.name}", endpoint=endpoint, mlflow_uri=server.url, run_id=folder.name)


def test_the_oldest_server_does_what_the_steps_need(oldest: MlflowServer, tmp_path: Path, rclone_endpoint: str) -> None:
    version = check_server_version(oldest.url)
    assert version is not None
    assert tuple(map(int, version.split(".")[:2])) == OLDEST_MLFLOW
    context = context_at(oldest, tmp_path, rclone_endpoint)
    assert version in run(ResourcesConfig(), None, context, model_name="faces")["mlflow_calls"]
    assert register_without_weights(context, tmp_path, "faces") == "1"
    assert Registry(context.tracking, "faces").aliases() == {CHALLENGER: "1"}
    finalize.run("FINISHED", "", context)


def test_a_server_that_is_too_old_is_refused_by_preflight(too_old: MlflowServer, tmp_path: Path, rclone_endpoint: str) -> None:
    context = context_at(too_old, tmp_path, rclone_endpoint)
    with pytest.raises(BadInput, match=r"is version 2\.22\.\d+, the oldest that is supported is 3\.0") as refused:
        run(ResourcesConfig(), None, context)
    assert refused.value.exit_code == 2
    assert context.tracking.client.search_experiments(filter_string="name = 'tests'") == [], "nothing was begun there"


def test_calls_that_a_server_lacks_are_named_if_a_proxy_hides_its_version(too_old: MlflowServer, tmp_path: Path) -> None:
    context = context_at(too_old, tmp_path, "http://127.0.0.1:9")
    pipeline_run = context.tracking.pipeline_run()
    with pytest.raises(BadInput, match=r"does not offer /api/2\.0/mlflow/logged-models") as refused:
        rehearse(context.tracking, pipeline_run, "faces")
    assert refused.value.exit_code == 2


def test_the_pinned_servers_are_those_of_the_constant() -> None:
    pins = {
        name: re.search(r"^mlflow-skinny==(\d+)\.(\d+)", (ROOT / "requirements" / f"{name}-mlflow.txt").read_text(), re.MULTILINE)
        for name in ("oldest", "too-old")
    }
    assert all(pins.values())
    oldest, too_old = (tuple(int(part) for part in pin.groups()) for pin in pins.values() if pin is not None)
    assert too_old < oldest == OLDEST_MLFLOW
