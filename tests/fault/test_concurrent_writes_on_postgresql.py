"""Steps that write the same to MLflow at the same moment, on PostgreSQL, which, unlike SQLite, lets their writes overlap."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.concurrent_writes import WRITES
from celebdit_testing.postgres import postgres_server, programs
from celebdit_testing.servers import mlflow_server
from celebdit_testing.steps import step_context

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="PostgreSQL's programs are not installed"),
]
PASSWORD = "canary-postgres-0123"
_TURNS = 6


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(PASSWORD) as address:
        backend = {"MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow:{PASSWORD}@{address}/mlflow"}
        with mlflow_server(tmp_path_factory.mktemp("server"), environment=backend, options=("--workers", "3")) as server:
            yield server.url


@pytest.mark.parametrize("write", WRITES)
def test_callers_that_write_the_same_at_once_all_succeed(write: str, mlflow_url: str, tmp_path: Path) -> None:
    context = step_context("register", tmp_path, "s3://bucket/x", endpoint=None, mlflow_uri=mlflow_url)
    for turn in range(_TURNS):
        WRITES[write](context, turn)
