"""Racing promoters on PostgreSQL, which, unlike SQLite, lets their writes overlap, in a server with several workers."""

from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from celebdit_testing.postgres import postgres_server, programs
from celebdit_testing.promoters import PROMOTERS, race_promoters
from celebdit_testing.servers import mlflow_server
from celebdit_testing.steps import step_context

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="PostgreSQL's programs are not installed"),
]
PASSWORD = "canary-postgres-0123"


def test_twenty_racing_promoters_end_where_some_order_of_them_would(tmp_path: Path) -> None:
    with postgres_server(PASSWORD) as address:
        database = f"mlflow:{PASSWORD}@{address}/mlflow"
        backend = {"MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{database}"}
        with mlflow_server(tmp_path / "server", environment=backend, options=("--workers", "3")) as server:
            context = step_context("register", tmp_path, "s3://bucket/x", endpoint=None, mlflow_uri=server.url)
            race_promoters(context, "contested", tmp_path)
            with closing(psycopg2.connect(f"postgresql://{database}")) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM registered_model_tags WHERE key LIKE 'celebdit.move.%'")
                assert cursor.fetchone()[0] > PROMOTERS, "they were written there"
