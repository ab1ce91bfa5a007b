"""The database of the embedded MLflow server: made without migrations, and checked, before it is used.

Promises: it is its user's alone, and in place only when it is complete.
"""

import os
import sqlite3
import tempfile
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from components.errors import DataRefused, TemporaryFailure
from pipeline.home import DATABASE
from pipeline.mlflow_schema import SCHEMA, schema_version
from pipeline.server_commands import MLFLOW_BUCKET


def prepare_database(home: Path) -> None:
    """Check the database of the MLflow server of `home`, or create it.

    Raises:
        DataRefused: if it is damaged. TemporaryFailure: if it cannot be read or written.
    """
    path = home / DATABASE
    check_database(path, artifacts=home / "s3" / MLFLOW_BUCKET)
    try:
        create_database(path)
    except (sqlite3.Error, OSError) as error:
        raise TemporaryFailure(
            f"MLflow's database {path} cannot be made: {error}", hint="check who may write there, and the disk"
        ) from error


def create_database(path: Path) -> bool:
    """Create the empty database of MLflow at `path` and return whether that was done.

    It is not if there is one, or if another version of MLflow is installed than the schema is of: MLflow migrates an empty one itself.
    """
    if path.exists() or _installed_version() != schema_version():
        return False
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    unfinished = Path(name)
    try:
        with closing(sqlite3.connect(unfinished)) as connection:
            # The file is no database before it is complete, so no journal has to protect it meanwhile.
            connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;\n{SCHEMA.read_text()}")
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _installed_version() -> str | None:
    try:
        return version("mlflow")
    except PackageNotFoundError:
        return None


def check_database(path: Path, *, artifacts: Path) -> None:
    """Check that the SQLite database at `path`, if there is one, is not cut off; what a killed server left half-done SQLite repairs.

    An empty file is a database without tables, as a new server begins with, but not if there are `artifacts` of its runs.

    Raises:
        DataRefused: if it is damaged. TemporaryFailure: if it cannot be read.
    """
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (pages,), (page_bytes,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    except sqlite3.OperationalError as error:
        raise TemporaryFailure(f"MLflow's database {path} cannot be read: {error}", hint="check who may use it, and the disk") from error
    except sqlite3.DatabaseError as error:
        raise _damage_error(path, str(error)) from error
    size_bytes = path.stat().st_size
    if not tables and (size_bytes or any(artifacts.iterdir())):
        raise _damage_error(path, "it has no tables")
    if size_bytes < pages * page_bytes and not path.with_name(f"{path.name}-wal").exists():
        raise _damage_error(path, f"it has {size_bytes} of {pages * page_bytes} bytes")


def _damage_error(path: Path, reason: str) -> DataRefused:
    return DataRefused(
        f"MLflow's database {path} is damaged: {reason}",
        hint=f"restore it from a backup, or begin an empty one after: mv '{path}' '{path}.damaged'; datasets and checkpoints are not in it",
    )
