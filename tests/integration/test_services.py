"""The embedded servers: shared, private, recognised, and gone when they should be."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from components.environment import SERVER_MARK
from components.errors import BadInput, TemporaryFailure
from pipeline.services import Services

HOLDER = """
import sys
from pathlib import Path
from pipeline.services import Services
with Services(Path(sys.argv[1])).use():
    print("using", flush=True)
    sys.stdin.readline()
"""


def hold(home: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "using\n"
    return process


def let_go(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=60)


def test_only_the_last_user_stops_the_servers(tmp_path: Path) -> None:
    services = Services(tmp_path / "home")
    first, second = hold(tmp_path / "home"), hold(tmp_path / "home")
    running = services.running_servers()
    assert set(running) == {"s3", "mlflow"}
    let_go(first)
    assert services.running_servers() == running
    family = [psutil.Process(server.pid) for server in running.values()]
    family += [child for member in family for child in member.children(recursive=True)]
    let_go(second)
    assert services.running_servers() == {}
    assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]


def test_stopping_does_not_wait_for_the_parent_of_a_server_to_notice(tmp_path: Path) -> None:
    """The parent is the command that started the servers, and it may go on with something else."""
    home = tmp_path / "home"
    home.mkdir()
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.readline()"
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(
        [sys.executable, "-c", parent, *child],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CELEBDIT_SERVICE": "m"},
    ) as holder:
        assert holder.stdout is not None
        server = psutil.Process(int(holder.stdout.readline()))
        record = {"servers": {"s3": {"url": "http://127.0.0.1:1", "pid": server.pid, "mark": "m"}}, "stay": True}
        (home / "services.json").write_text(json.dumps(record))
        began_s = time.monotonic()
        assert Services(home).stop() == ["s3"]
        assert server.status() == psutil.STATUS_ZOMBIE
        assert time.monotonic() - began_s < 10
        holder.communicate("\n")


def test_servers_of_a_killed_command_end_with_it(tmp_path: Path) -> None:
    holder = hold(tmp_path / "home")
    family = [psutil.Process(server.pid) for server in Services(tmp_path / "home").running_servers().values()]
    holder.kill()
    holder.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


INTERRUPTED = """
import sys
from pathlib import Path
from pipeline.server_process import Server
from pipeline.services import Services
stop, urls = Server.stop, []
def stop_or_be_interrupted(server):
    urls.append(server.url)
    if len(urls) == int(sys.argv[2]):
        raise KeyboardInterrupt
    stop(server)
services = Services(Path(sys.argv[1]))
with services.use():
    print(*(server.pid for server in services._record.read().values()), flush=True)
    Server.stop = stop_or_be_interrupted
"""


@pytest.mark.parametrize("call", [1, 2, 3])
def test_servers_end_although_their_command_is_interrupted_again_while_it_stops_them(call: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "home"), str(call)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        family = [psutil.Process(int(pid)) for pid in command.stdout.readline().split()]
        assert "KeyboardInterrupt" in command.communicate(timeout=60)[1]
    _, alive = psutil.wait_procs(family, timeout=30)
    for process in alive:
        process.kill()
    assert (len(family), alive) == (3, [])


ENDED_IN_THE_START = """
import os, signal, sys
from pathlib import Path
from pipeline import services
start, starts = services.start_detached, []
def start_and_end(*arguments):
    starts.append(start(*arguments))
    if len(starts) == int(sys.argv[2]):
        if sys.argv[3] == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
    return starts[-1]
services.start_detached = start_and_end
if sys.argv[4] == "stay":
    services.Services(Path(sys.argv[1])).start(stay=True)
with services.Services(Path(sys.argv[1])).use():
    pass
"""


def end_in_the_start(home: Path, call: int, how: str, *, stay: bool) -> None:
    arguments = [sys.executable, "-c", ENDED_IN_THE_START, str(home), str(call), how, "stay" if stay else "use"]
    assert subprocess.run(arguments, check=False, stderr=subprocess.DEVNULL).returncode != 0


def server_processes(home: Path) -> list[psutil.Process]:
    """The servers and the watchdog of `home`, known or not."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(home) and SERVER_MARK in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


@pytest.mark.parametrize("how", ["SIGKILL", "KeyboardInterrupt"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_servers_end_with_a_command_that_ends_before_it_knows_their_process(call: int, how: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    end_in_the_start(home, call, how, stay=False)
    _, alive = psutil.wait_procs(server_processes(home), timeout=30)
    for process in alive:
        process.kill()
    assert alive == []


@pytest.mark.parametrize("call", [1, 2])
def test_the_next_command_uses_the_servers_of_one_that_was_killed_in_their_start(call: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    end_in_the_start(home, call, "SIGKILL", stay=True)
    started = {process.pid for process in server_processes(home)}
    services = Services(home)
    try:
        services.start(stay=True)
        services.wait()
        running = {server.pid for server in services.running_servers().values()}
        assert started <= running, "none was started a second time"
    finally:
        services.stop()
        for process in (left := server_processes(home)):
            process.kill()
    assert left == []


def test_the_secret_is_nowhere_on_disk_or_in_the_process_list(embedded: Services) -> None:
    secret = embedded.wait().environment["AWS_SECRET_ACCESS_KEY"]
    for path in embedded.home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    for server in embedded.running_servers().values():
        assert secret not in " ".join(psutil.Process(server.pid).cmdline())


def test_both_servers_listen_on_loopback_only(embedded: Services) -> None:
    """What the agent and the ranks of a training listen on is in test_launch.py."""
    embedded.wait()
    servers = embedded.running_servers()
    assert servers.keys() == {"s3", "mlflow"}
    for name, server in servers.items():
        process = psutil.Process(server.pid)
        sockets = [socket for member in [process, *process.children(recursive=True)] for socket in member.net_connections(kind="inet")]
        listening = {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert urlsplit(server.url).port in {address.port for address in listening}, f"{name} is seen to listen"
        assert {address.ip for address in listening} == {"127.0.0.1"}, name


def test_anonymous_requests_are_refused_by_the_s3_server(embedded: Services) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(embedded.wait().s3_url + "/celebdit", timeout=5)
    assert raised.value.code in (400, 403)


def test_a_recorded_process_id_that_is_another_process_now_is_not_touched(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        server = {"url": "http://127.0.0.1:1", "pid": bystander.pid, "mark": "of another process"}
        (home / "services.json").write_text(json.dumps({"servers": {"s3": server, "mlflow": server}, "stay": True}))
        assert Services(home).running_servers() == {}
        assert Services(home).stop() == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_occupied_port_is_reported(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(BadInput, match=f"--s3-port {port} cannot be used"):
            Services(tmp_path / "home").start(stay=False, s3_port=port)
    assert Services(tmp_path / "home").running_servers() == {}


def test_waiting_for_servers_that_do_not_run_says_how_to_start_them(tmp_path: Path) -> None:
    with pytest.raises(TemporaryFailure, match="not running"):
        Services(tmp_path / "home").wait()
