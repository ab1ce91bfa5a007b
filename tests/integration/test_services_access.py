"""The embedded servers answer their own user alone, and no other process can answer in their place."""

import http.client
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.command import COMMAND, celebdit, celebdit_here
from celebdit_testing.strangers import STRANGERS_SERVER, as_stranger, bytes_received, start_stranger

from components.errors import TemporaryFailure
from components.storage import StoreUri
from pipeline.home import LOCK, locked
from pipeline.server_process import Server
from pipeline.service_users import ServiceUsers
from pipeline.services import Services
from pipeline.session import open_session

ROUTES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/static-files/static/js/main.js"),
    ("GET", "/get-artifact?path=x&run_uuid=y"),
    ("GET", "/model-versions/get-artifact?path=x&name=y&version=1"),
    ("POST", "/graphql"),
    ("POST", "/api/2.0/mlflow/experiments/search"),
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("DELETE", "/api/2.0/mlflow/registered-models/alias?name=x&alias=champion"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=y"),
    ("GET", "/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id=x&metric_key=y"),
    ("GET", "/ajax-api/3.0/mlflow/server-info"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=."),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/serving.py"),
    ("PUT", "/ajax-api/2.0/mlflow-artifacts/artifacts/serving.py"),
    ("POST", "/v1/traces"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("OPTIONS", "/api/2.0/mlflow/experiments/search"),
    ("GET", "/no/such/route"),
]
ASK = """
import http.client, json, sys
host, requests, statuses = sys.argv[1], json.loads(sys.argv[2]), []
for method, path in requests:
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None, headers={"content-type": "application/json"})
    statuses.append(connection.getresponse().status)
print(json.dumps(statuses))
"""
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


def address(url: str) -> str:
    return urlsplit(url).netloc


def token_of(embedded: Services) -> str:
    return embedded.wait().environment["MLFLOW_TRACKING_TOKEN"]


def ask(url: str, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection(address(url), timeout=20)
    connection.request(method, path, headers=headers)
    return connection.getresponse().status


def test_mlflow_refuses_everybody_without_the_token_whatever_they_ask(embedded: Services) -> None:
    url, token = embedded.wait().mlflow_url, token_of(embedded)
    asked = {
        (method, path): (ask(url, method, path), ask(url, method, path, Authorization=f"Bearer {token[:-1]}x")) for method, path in ROUTES
    }
    assert asked == dict.fromkeys(ROUTES, (401, 401))
    for path in ("/", "/health", "/version"):
        assert ask(url, "GET", path, Authorization=f"Bearer {token}") == 200
    assert 401 not in {ask(url, method, path, Authorization=f"Bearer {token}") for method, path in ROUTES if method == "GET"}
    assert ask(url, "GET", "/", Authorization=f"Bearer {token}", Host="evil.example") == 403, "MLflow's own check of the host is kept"


def test_another_user_is_refused_by_both_servers(embedded: Services) -> None:
    endpoints = embedded.wait()
    assert as_stranger(ASK, address(endpoints.mlflow_url), json.dumps(ROUTES)) == [401] * len(ROUTES)
    objects = [
        ("GET", "/"),
        ("GET", "/celebdit"),
        ("PUT", "/celebdit/x"),
        ("PUT", "/mlflow/artifacts/serving.py"),
        ("DELETE", "/celebdit/x"),
    ]
    assert set(as_stranger(ASK, address(endpoints.s3_url), json.dumps(objects))) <= {400, 401, 403}
    assert not (embedded.home / "s3" / "celebdit" / "x").exists()
    assert not (embedded.home / "s3" / "mlflow" / "artifacts" / "serving.py").exists()


def test_the_token_is_in_no_file_and_no_command_line(embedded: Services) -> None:
    endpoints = embedded.wait()
    requests.get(endpoints.link(f"{endpoints.mlflow_url}/"), timeout=20).raise_for_status()
    assert ask(endpoints.mlflow_url, "GET", f"/?token={token_of(embedded)}") == 303
    for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        secret = endpoints.environment[name]
        for path in embedded.home.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
        for process in psutil.process_iter(["cmdline"]):
            assert secret not in " ".join(process.info["cmdline"] or []), process


def test_a_person_opens_the_link_once_and_then_has_a_cookie(embedded: Services) -> None:
    endpoints = embedded.wait()
    page = f"{endpoints.mlflow_url}/"
    with requests.Session() as browser:
        browser.trust_env = False
        assert browser.get(page, timeout=20).status_code == 401
        opened = browser.get(endpoints.link(page), timeout=20)
        assert opened.status_code == 200
        assert opened.url == page, "the token is gone from the address"
        (cookie,) = browser.cookies
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "Lax"
        assert token_of(embedded) not in str(cookie.value)
        search = f"{page}ajax-api/2.0/mlflow/experiments/search"
        assert browser.post(search, json={"max_results": 1}, timeout=20).status_code == 200
        elsewhere = {"Origin": "http://127.0.0.1:9999"}
        assert browser.post(search, json={"max_results": 1}, headers=elsewhere, timeout=20).status_code == 401


def test_a_browser_shows_mlflow_after_the_link_and_not_before(embedded: Services) -> None:
    endpoints = embedded.wait()
    page_url = f"{endpoints.mlflow_url}/#/models?workflowType=machine_learning"
    with browser_page(chromium_or_skip()) as page:
        page.goto(f"{endpoints.mlflow_url}/")
        page.get_by_text("asks for its token").wait_for()
        page.goto(endpoints.link(page_url))
        page.get_by_text("Create Model").or_(page.get_by_text("Create model")).first.wait_for()
        assert page.url.startswith(f"{endpoints.mlflow_url}/#/models")


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
        ports = [urlsplit(server.url).port for server in services.running().values()]
        assert len(ports) == 2
        for port in ports:
            assert "listens" not in as_stranger(BIND, str(port))
    finally:
        services.stop()


SHELL = {
    "proxies": dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9"),
    "proxies with exceptions": {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"},
    "another S3": {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
    "a profile": {"AWS_PROFILE": "nobody"},
    "a session": {"AWS_SESSION_TOKEN": "x" * 20},
    "other checksums": {"AWS_REQUEST_CHECKSUM_CALCULATION": "no-such-thing"},
    "another style": {"AWS_S3_ADDRESSING_STYLE": "virtual"},
    "another token": {"MLFLOW_TRACKING_TOKEN": "somebody-elses"},
    "a password": {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"},
    "an authentication": {"MLFLOW_TRACKING_AUTH": "no-such-plugin"},
    "a timeout": {"MLFLOW_HTTP_REQUEST_TIMEOUT": "abc"},
    "retries": {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "abc"},
    "a run": {"MLFLOW_RUN_ID": "abc"},
    "a registry": {"MLFLOW_REGISTRY_URI": "http://127.0.0.1:9"},
    "a workspace": {"MLFLOW_WORKSPACE": "elsewhere"},
}


@pytest.fixture
def shell() -> Iterator[None]:
    """The environment of this process, put back afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", SHELL)
def test_variables_of_the_shell_do_not_bend_the_embedded_servers(embedded: Services, shell: None, case: str) -> None:
    os.environ.update(SHELL[case])
    with open_session(embedded.home) as session:
        context = session.context(session.environment(run_id="shell-1"))
        run = context.tracking.pipeline_run()
        context.tracking.log_text(run.info.run_id, "x", "x.txt")
        assert context.tracking.read_artifact(run.info.run_id, "x.txt") == b"x"
        assert run.info.run_id != "abc"
        uri = StoreUri.parse(context.settings.store_uri) / "shell" / "x"
        context.store.put_bytes(uri, b"x")
        assert context.store.get_bytes(uri) == b"x"


def test_files_of_the_user_do_not_bend_the_embedded_servers(
    embedded: Services, shell: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        ".netrc": "default login me password secret\n",
        ".mlflow/credentials": "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = secret\n",
        ".aws/config": "[default]\nendpoint_url = http://127.0.0.1:9\nregion = nowhere\n",
        ".aws/credentials": "[default]\naws_access_key_id = me\naws_secret_access_key = secret\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    test_variables_of_the_shell_do_not_bend_the_embedded_servers(embedded, None, "another S3")


def test_exports_lead_other_programs_to_the_servers(embedded: Services, tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text("""
import boto3, mlflow
print(mlflow.MlflowClient().search_experiments()[0].name)
print([bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]])
""")
    celebdit_env = shlex.join([*COMMAND, "services", "env", "--home", str(embedded.home)])
    script = f'eval "$({celebdit_env})" && exec {shlex.join([sys.executable, str(program)])}'
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    shell = {
        **kept,
        "AWS_PROFILE": "nobody",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "x",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(["sh", "-c", script], env=shell, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "['celebdit', 'mlflow']" in done.stdout


def test_exports_of_servers_that_do_not_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = celebdit_here("services", "env", home=tmp_path / "home", capture=capsys)
    assert refused.code == 75
    assert refused.out == ""
    assert "not running" in refused.err


def test_a_shell_with_the_exports_still_shares_the_servers(embedded: Services, shell: None) -> None:
    os.environ.update(embedded.wait().environment)
    with open_session(embedded.home) as session:
        assert session.services is not None
        assert f"process {os.getpid()}" in embedded.users()
    del os.environ["CELEBDIT_STORE"]
    with open_session(embedded.home) as session:
        assert session.services is not None


def test_servers_under_a_run_are_not_stopped_without_a_yes(embedded: Services, capsys: pytest.CaptureFixture[str]) -> None:
    with ServiceUsers(embedded.home).joined("run smoke-1"):
        refused = celebdit_here("services", "down", home=embedded.home, capture=capsys)
    assert refused.code == 2
    assert f"run smoke-1 (process {os.getpid()})" in refused.err
    assert "--yes" in refused.err
    assert set(embedded.running()) == {"s3", "mlflow"}
    embedded.wait()


@pytest.mark.parametrize(("answer", "code", "stays"), [("n\n", 2, True), ("y\n", 0, False)])
def test_a_person_is_asked_before_servers_in_use_are_stopped(tmp_path: Path, answer: str, code: int, stays: bool) -> None:
    with_server, home = {**os.environ, "CELEBDIT_SERVICE": "m"}, tmp_path / "home"
    home.mkdir(mode=0o700)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=with_server) as server:
        record = {"servers": {"s3": {"url": "http://127.0.0.1:1", "pid": server.pid, "mark": "m"}}, "stay": True}
        (home / "services.json").write_text(json.dumps(record))
        with ServiceUsers(home).joined("run smoke-1"):
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
        ServiceUsers(home).joined("run smoke-1"),
    ):
        record = {"servers": {"s3": {"url": "http://127.0.0.1:1", "pid": server.pid, "mark": "m"}}, "stay": True}
        (home / "services.json").write_text(json.dumps(record))
        done = celebdit_here("services", "down", "--yes", "--json", home=home, capture=capsys)
        assert (done.code, done.json) == (0, {"stopped": ["s3"]})
        assert server.poll() is not None


def test_the_ui_prints_links_with_the_token_and_its_json_does_not(embedded: Services) -> None:
    shown = celebdit("ui", "--json", home=embedded.home)
    try:
        assert shown.code == 0, shown.err
        links = re.findall(r"http://\S+", shown.err)
        token = token_of(embedded)
        opened = [link for link in links if f"?token={token}#/" in link]
        assert len(opened) == 2
        assert all(requests.get(link.partition("#")[0], timeout=20).status_code == 200 for link in opened)
        assert token not in shown.out
    finally:
        state = embedded.home / "services.json"
        with locked(embedded.home / LOCK):  # they go with their last user again
            state.write_text(json.dumps({**json.loads(state.read_text()), "stay": False}))


def test_the_state_and_the_database_are_readable_by_their_user_alone(embedded: Services) -> None:
    assert embedded.home.stat().st_mode & 0o077 == 0
    for name in ("services.json", "services.lock", "mlflow.db", "s3", "logs"):
        assert (embedded.home / name).stat().st_mode & 0o077 == 0, name
