"""Embedded servers in use are stopped with a yes alone."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND, celebdit_here

from pipeline.service_users import ServiceUsers
from pipeline.services import Services


def test_servers_under_a_run_are_not_stopped_without_a_yes(embedded: Services, capsys: pytest.CaptureFixture[str]) -> None:
    with ServiceUsers(embedded.home).register("run smoke-1"):
        refused = celebdit_here("services", "down", home=embedded.home, capture=capsys)
    assert refused.code == 2
    assert f"run smoke-1 (process {os.getpid()})" in refused.err
    assert "--yes" in refused.err
    assert set(embedded.running_servers()) == {"s3", "mlflow"}
    embedded.wait()


@pytest.mark.parametrize(("answer", "code", "stays"), [("n\n", 2, True), ("y\n", 0, False)])
def test_a_person_is_asked_before_servers_in_use_are_stopped(tmp_path: Path, answer: str, code: int, stays: bool) -> None:
    with_server, home = {**os.environ, "CELEBDIT_SERVICE": "m"}, tmp_path / "home"
    home.mkdir(mode=0o700)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=with_server) as server:
        record = {"servers": {"s3": {"url": "http://127.0.0.1:1", "pid": server.pid, "mark": "m"}}, "stay": True}
        (home / "services.json").write_text(json.dumps(record))
        with ServiceUsers(home).register("run smoke-1"):
            pid, terminal = pty.fork()
            if pid == 0:
                os.execv(sys.executable, [*COMMAND, "services", "down", "--home", str(home)])
            message = read_until(terminal, b"?")
            assert b"run smoke-1" in message
            os.write(terminal, answer.encode())
            read_until(terminal, b"\0")
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        time.sleep(0.2)
        assert (server.poll() is None) is stays
        server.kill()


def read_until(terminal: int, text: bytes) -> bytes:
    """What a terminal shows until it shows `text`, or until its program ends."""
    message = b""
    while text not in message:
        try:
            message += os.read(terminal, 1000)
        except OSError:  # the program has ended
            return message
    return message


def test_yes_stops_servers_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, "CELEBDIT_SERVICE": "m"}) as server,
        ServiceUsers(home).register("run smoke-1"),
    ):
        record = {"servers": {"s3": {"url": "http://127.0.0.1:1", "pid": server.pid, "mark": "m"}}, "stay": True}
        (home / "services.json").write_text(json.dumps(record))
        done = celebdit_here("services", "down", "--yes", "--json", home=home, capture=capsys)
        assert (done.code, done.json) == (0, {"stopped": ["s3"]})
        assert server.poll() is not None
