"""Check the database of the embedded MLflow server before a server is started on it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from components.errors import DataRefused, TemporaryFailure


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
