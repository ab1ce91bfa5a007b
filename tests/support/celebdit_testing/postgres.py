"""A PostgreSQL server of this machine's own programs, on 127.0.0.1, with passwords asked for as its official image does."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from celebdit_testing.waiting import wait_until

from components.system.ports import free_port

USER = "postgres"
"""Who runs it where we are root, as whom it refuses to."""


def programs() -> Path | None:
    """Return the folder with PostgreSQL's programs, if this machine has them and a user who may run them."""
    folders = [Path(initdb).resolve().parent for initdb in [shutil.which("initdb")] if initdb]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    able = os.getuid() != 0 or any(entry.pw_name == USER for entry in pwd.getpwall())
    return next((folder for folder in folders if able and {"initdb", "postgres"} <= {path.name for path in folder.iterdir()}), None)


@contextmanager
def postgres_server(password: str, *, user: str = "mlflow", database: str = "mlflow") -> Iterator[str]:
    """Serve an empty `database` and yield the address as host:port."""
    import psycopg2

    programs_folder, port = programs(), free_port()
    assert programs_folder is not None, "there is no PostgreSQL on this machine"
    who: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="celebdit-postgres-") as home:
        folder = Path(home)
        words = folder / "password"
        words.write_text(password)
        if who:
            for path in (folder, words):
                shutil.chown(path, USER, USER)
        how = [f"--username={user}", f"--pwfile={words}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [str(programs_folder / "initdb"), f"--pgdata={folder / 'data'}", *how], check=True, capture_output=True, cwd="/", **who
        )
        words.unlink()
        command = [
            str(programs_folder / "postgres"),
            "-D",
            str(folder / "data"),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            str(folder),
            "-F",
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True, **who)
        try:
            with closing(connected(psycopg2, port, user, password)) as connection:
                connection.autocommit = True
                connection.cursor().execute(f"CREATE DATABASE {database}")
            yield f"127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # closes what is open and ends
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def connected(psycopg2: Any, port: int, user: str, password: str) -> Any:
    connections = []

    def connect() -> bool:
        with suppress(psycopg2.OperationalError):
            connections.append(psycopg2.connect(host="127.0.0.1", port=port, user=user, password=password, dbname="postgres"))
        return bool(connections)

    wait_until(connect, timeout_s=30, every_s=0.1, reason=lambda: "PostgreSQL did not start")
    return connections[0]
