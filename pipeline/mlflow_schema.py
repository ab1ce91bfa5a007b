"""Write `mlflow_schema.sql`, the empty database of the pinned MLflow version as MLflow's own migrations make it: `make schema`.

Migrations take longer than all else that a new server does; `server_database.py` makes the database from this text.
"""

import sqlite3
import subprocess
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from components.system.child_environment import child_environment
from components.system.python_process import python_command

SCHEMA = Path(__file__).with_name("mlflow_schema.sql")
_HEADER = "-- MLflow "


def schema_version() -> str:
    """Return the MLflow version whose database the text describes."""
    with SCHEMA.open() as lines:
        return lines.readline().removeprefix(_HEADER).split()[0]


def migrated_database(folder: Path) -> Path:
    """Let MLflow make an empty database in `folder`, in a process of its own, and return its path."""
    command = python_command("mlflow", "db", "upgrade", "sqlite:///mlflow.db")
    # The migrations copy tables, and what a set holds in the order of its hashes.
    environment = {**child_environment("server"), "PYTHONHASHSEED": "0"}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)
    return folder / "mlflow.db"


def dump(database: Path) -> str:
    """Return the statements that make the tables and rows of a database."""
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def main() -> None:
    """Write the text."""
    with tempfile.TemporaryDirectory(prefix="celebdit-") as folder:
        statements = dump(migrated_database(Path(folder)))
    SCHEMA.write_text(f"{_HEADER}{version('mlflow')} (Apache License 2.0): its empty database. Written by `make schema`.\n{statements}")


if __name__ == "__main__":
    main()
