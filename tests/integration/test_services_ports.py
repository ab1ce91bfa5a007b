"""No other process can answer in place of the embedded servers, or take their ports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from celebdit_testing.command import celebdit_here
from celebdit_testing.strangers import STRANGERS_SERVER, as_stranger, bytes_received, start_stranger

from components.errors import TemporaryFailure
from pipeline.server_process import Server
from pipeline.services import Services

BIND = """
import json, socket, sys
tried = []
for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    for host in ("127.0.0.1", "0.0.0.0"):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            listener.bind((host, int(sys.argv[1])))
            listener.listen()
            tried.append("listens")
        except OSError as error:
            tried.append(error.errno)
print(json.dumps(tried))
"""


@pytest.fixture
def impostor() -> "Iterator[tuple[int, subprocess.Popen[str]]]":
    """A stranger's server and its port; it counts the bytes that it receives."""
    with start_stranger(STRANGERS_SERVER, "127.0.0.1", "0") as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process
        process.kill()


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    """A process of this user with the mark of a server and its secrets, which listens on nothing."""
    marks = {"CELEBDIT_SERVICE": "m", "CELEBDIT_S3_SECRET": "s" * 32, "CELEBDIT_MLFLOW_TOKEN": "t" * 32}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, **marks}) as process:
        yield process
        process.kill()


def test_a_stranger_that_has_the_port_of_our_server_receives_nothing(
    tmp_path: Path, impostor: tuple[int, "subprocess.Popen[str]"], sleeper: "subprocess.Popen[bytes]"
) -> None:
    port, process = impostor
    server = Server(url=f"http://127.0.0.1:{port}", pid=sleeper.pid, mark="m")
    assert server.process() is not None
    assert not server.listens()
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    record = {"url": server.url, "pid": server.pid, "mark": server.mark}
    (home / "services.json").write_text(json.dumps({"servers": {"s3": record, "mlflow": record}, "stay": True}))
    with pytest.raises(TemporaryFailure, match=f"what listens at {server.url} is not the s3 server"):
        Services(home).wait()
    assert bytes_received(process) == 0, "the stranger was asked"


def test_a_process_that_started_at_another_time_is_not_the_recorded_one(sleeper: "subprocess.Popen[bytes]") -> None:
    from components.system.process_table import start_ticks

    started = start_ticks(sleeper.pid)
    assert started is not None
    assert Server("http://127.0.0.1:1", sleeper.pid, "m", started).process() is not None
    assert Server("http://127.0.0.1:1", sleeper.pid, "m", started - 1).process() is None


def test_a_port_that_a_stranger_has_is_refused_and_starts_nothing(
    tmp_path: Path, impostor: tuple[int, "subprocess.Popen[str]"], capsys: pytest.CaptureFixture[str]
) -> None:
    port, stranger = impostor
    for flag in ("--s3-port", "--mlflow-port"):
        refused = celebdit_here("services", "up", flag, str(port), home=tmp_path / "home", capture=capsys)
        assert refused.code == 2
        assert f"{flag} {port} cannot be used" in refused.err
    assert bytes_received(stranger) == 0
    mine = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(process.info["cmdline"] or [])]
    assert mine == []


def test_no_process_can_take_a_port_once_the_start_has_begun(tmp_path: Path) -> None:
    """Not even before the servers are ready, which takes MLflow seconds."""
    services = Services(tmp_path / "home")
    services.start(stay=True)
    try:
        ports = [urlsplit(server.url).port for server in services.running_servers().values()]
        assert len(ports) == 2
        for port in ports:
            assert "listens" not in as_stranger(BIND, str(port))
    finally:
        services.stop()
