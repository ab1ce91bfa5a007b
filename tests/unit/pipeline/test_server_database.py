"""The database of the embedded MLflow server: a cut one is named before a server is started on it, a crash of the server is not."""

import sqlite3
import stat
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from components.errors import DataRefused, TemporaryFailure
from pipeline.mlflow_schema import SCHEMA, dump, migrated_database, schema_version
from pipeline.server_database import check_database, create_database, prepare_database
from pipeline.services import Services


def database(home: Path) -> Path:
    """A database of a few pages, and an artifact of a run that is in it."""
    artifacts = home / "s3" / "mlflow"
    artifacts.mkdir(parents=True)
    (artifacts / "artifacts").mkdir()
    path = home / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?)", [("x" * 1000,)] * 40)
        connection.commit()
    return path


def check(home: Path) -> None:
    check_database(home / "mlflow.db", artifacts=home / "s3" / "mlflow")


def test_no_database_and_a_whole_one_are_fine(tmp_path: Path) -> None:
    check(tmp_path)
    database(tmp_path)
    check(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 60, 100, 4096, 5000, 20_000, -4096, -1])
def test_a_database_that_was_cut_is_named(kept: int, tmp_path: Path) -> None:
    path = database(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataRefused, match=r"mlflow\.db is damaged") as raised:
        check(tmp_path)
    assert "\n" not in raised.value.message
    assert "mv " in str(raised.value.hint)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    database(tmp_path).write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(DataRefused, match="file is not a database"):
        check(tmp_path)


def test_an_empty_file_without_runs_is_what_a_new_server_begins_with(tmp_path: Path) -> None:
    (tmp_path / "s3" / "mlflow").mkdir(parents=True)
    (tmp_path / "mlflow.db").touch()
    check(tmp_path)


def test_what_a_killed_server_left_half_done_is_repaired(tmp_path: Path) -> None:
    path = database(tmp_path)
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("UPDATE runs SET name = 'torn'")
    journal = path.with_name("mlflow.db-journal")
    assert journal.stat().st_size > 0, "the transaction has begun to write to the file"
    torn, undo = path.read_bytes(), journal.read_bytes()
    writer.close()
    path.write_bytes(torn)
    journal.write_bytes(undo)
    check(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT name FROM runs").fetchall() == [("x" * 1000,)]


def statements(path: Path) -> list[list[str]]:
    """The statements of a dump, each as its lines, without their order: the migrations write constraints and indices in that of a set."""
    return sorted(sorted(line.strip().rstrip(",") for line in statement.splitlines()) for statement in dump(path).split(";\n"))


def columns(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The columns of each table, in their order."""
    with closing(sqlite3.connect(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"PRAGMA table_info('{name}')").fetchall() for name in tables}


def test_the_schema_is_that_of_the_installed_mlflow_and_its_database_private(tmp_path: Path) -> None:
    """After an upgrade of MLflow, `make schema` writes the new one."""
    assert schema_version() == version("mlflow")
    assert create_database(tmp_path / "new.db")
    assert stat.S_IMODE((tmp_path / "new.db").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["new.db"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_new_database_is_the_one_that_mlflow_makes(tmp_path: Path) -> None:
    """Its 63 migrations take seconds; a server refuses a database of another revision in every test that starts one."""
    assert create_database(tmp_path / "new.db")
    made, migrated = tmp_path / "new.db", migrated_database(tmp_path)
    assert statements(made) == statements(migrated)
    assert columns(made) == columns(migrated)


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = database(tmp_path)
    before = path.read_bytes()
    assert not create_database(path)
    assert path.read_bytes() == before


def test_another_version_of_mlflow_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "older.sql").write_text(SCHEMA.read_text().replace("-- MLflow 3", "-- MLflow 2", 1))
    monkeypatch.setattr("pipeline.mlflow_schema.SCHEMA", tmp_path / "older.sql")
    assert not create_database(tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_a_database_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SCHEMA.read_text()
    (tmp_path / "cut.sql").write_text(text[: text.rindex("CREATE TABLE") + 20])
    monkeypatch.setattr("pipeline.server_database.SCHEMA", tmp_path / "cut.sql")
    home = tmp_path / "home"
    (home / "s3" / "mlflow").mkdir(parents=True)
    with pytest.raises(TemporaryFailure, match=r"mlflow\.db cannot be made"):
        prepare_database(home)
    assert [path.name for path in home.iterdir()] == ["s3"]


def test_no_server_is_started_on_a_cut_database(tmp_path: Path) -> None:
    path = database(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    services = Services(tmp_path)
    with pytest.raises(DataRefused, match="is damaged"), services.use():
        pass
    assert services.running_servers() == {}
    assert not list((tmp_path / "logs").iterdir())
