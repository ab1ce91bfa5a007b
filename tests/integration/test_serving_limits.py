"""What `celebdit serve` refuses, keeps from the served code, and leaves behind when it is stopped."""

import base64
import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.faults import fault_proxy
from celebdit_testing.registered import registered_faces
from celebdit_testing.serving import Server, served
from celebdit_testing.waiting import wait_until

from components.serving.request import MAX_BODY_BYTES
from components.system.heap import HEAP
from components.system.ports import http_status
from pipeline.services import Services

SECRETS = {
    "AWS_SESSION_TOKEN": "canary-session",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-forms",
    "CELEBDIT_KFP_TOKEN": "canary-kfp",
    "CELEBDIT_KFP_COOKIES": "canary-cookies",
    "CELEBDIT_WEBHOOK_URL": "http://canary-webhook.invalid",
    "KAGGLE_KEY": "canary-kaggle",
    "SOME_OTHER_TOKEN": "canary-other",
}
ONE = {"dataframe_records": [{"seed": 0}]}


@pytest.fixture(scope="module")
def home(embedded: Services, session_folder: Path) -> Path:
    registered_faces(embedded, session_folder / "faces")
    return embedded.home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server that was started by a shell full of secrets and has answered."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        with served(home, "faces@challenger") as server:
            server.answer(json.dumps(ONE).encode())
            yield server


def environment(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/environ").read_text()


def test_the_process_that_runs_the_model_has_no_secret(server: Server, embedded: Services) -> None:
    secrets = list(SECRETS.values())
    reached_by = embedded.wait().environment
    secrets += [reached_by["AWS_SECRET_ACCESS_KEY"], reached_by["MLFLOW_TRACKING_TOKEN"]]
    of_command = environment(psutil.Process(server.process.pid))
    assert all(value in of_command for value in SECRETS.values()), "the secrets are there to be taken"
    assert server.models
    for worker in server.models:
        for entry in environment(worker).split("\0"):
            name = entry.partition("=")[0]
            assert not any(value in entry for value in secrets), entry
            assert not name.startswith(("AWS_", "KAGGLE", "CELEBDIT_", "KF_", "MLFLOW_TRACKING")), entry


def test_the_process_that_runs_the_model_keeps_memory_as_ranks_do(server: Server) -> None:
    (worker,) = server.models
    assert HEAP.items() <= worker.environ().items()


def peak_bytes(server: Server) -> int:
    """The most memory that any process of the server ever had."""
    status = [Path(f"/proc/{worker.pid}/status").read_text() for worker in server.workers]
    return sum(int(text.partition("VmHWM:")[2].split()[0]) for text in status) * 1024


@pytest.mark.parametrize("kind", ["declared", "chunked", "honest until the limit"])
def test_a_body_of_fifty_megabytes_is_refused_and_kept_nowhere(server: Server, kind: str) -> None:
    rows = b'{"dataframe_records": [' + b'{"seed": 1},' * 4_300_000 + b'{"seed": 1}]}'
    assert len(rows) > 50_000_000
    before = peak_bytes(server)
    if kind == "declared":
        status, answer = server.post(rows)
    elif kind == "chunked":
        status, answer = server.post(io.BytesIO(rows), **{"Transfer-Encoding": "chunked"})
    else:
        status, answer = server.post(rows[:MAX_BODY_BYTES] + b" ")
    grown = peak_bytes(server) - before
    assert (status, answer["message"]) == (413, f"the body is longer than the {MAX_BODY_BYTES} bytes that a request may have")
    assert grown < 30e6, f"{grown / 1e6:.0f} MB"
    assert server.post(json.dumps(ONE).encode())[0] == 200, "it answers the next one"


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"seed\n1\n", "text/csv", 415, "Content-Type: application/json"),
        (b"PAR1", "application/vnd.apache.parquet", 415, "Content-Type: application/json"),
        (json.dumps(ONE).encode(), "application/json; charset=utf-16", 415, "UTF-8"),
        (b"[" * 100_000, "application/json", 400, "nested too deep"),
        (json.dumps({"dataframe_records": [{"seed": 1}] * 65}).encode(), "application/json", 400, "65 seeds in one request"),
        (json.dumps({"dataframe_records": [{"seed": -1}]}).encode(), "application/json", 400, "seed -1 must lie in [0, 2**32)"),
        (json.dumps({"dataframe_records": [{"seed": "x"}]}).encode(), "application/json", 400, "seed"),
        (json.dumps({"dataframe_records": [{"seed": [1, 2]}]}).encode(), "application/json", 400, ""),
        (
            json.dumps({**ONE, "params": {"num_steps": 1001}}).encode(),
            "application/json",
            400,
            "num_steps 1001 must lie between 1 and 1000",
        ),
        (json.dumps({**ONE, "params": {"sampler": "magic"}}).encode(), "application/json", 400, "sampler 'magic' is not one of"),
        (json.dumps({**ONE, "params": {"stepps": 3}}).encode(), "application/json", 400, "params.stepps is unknown"),
        (json.dumps({**ONE, "more": 3}).encode(), "application/json", 400, "'more' is unknown"),
    ],
)
def test_every_refusal_is_one_line(server: Server, body: bytes, kind: str, status: int, message: str) -> None:
    code, answer = server.post(body, kind)
    assert code == status, answer
    assert message in answer["message"]
    assert "\n" not in answer["message"]
    assert answer.keys() == {"error_code", "message"}


def ended(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_clients_that_ask_for_nothing_take_no_place_for_long(server: Server) -> None:
    ping = f"http://127.0.0.1:{server.port}/ping"
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(64)]
    wait_until(lambda: http_status(ping) == 503, timeout_s=5)
    wait_until(lambda: http_status(ping) == 200, timeout_s=30)
    for client in idle:
        client.close()


@pytest.mark.fault
@pytest.mark.slow
def test_ctrl_c_ends_a_server_at_once_while_it_draws(home: Path) -> None:
    with served(home, "faces@challenger") as server:
        server.answer(json.dumps(ONE).encode())
        workers = server.workers
        long = json.dumps({"dataframe_records": [{"seed": seed} for seed in range(64)], "params": {"num_steps": 1000}}).encode()
        drawing = threading.Thread(target=lambda: _swallow(server, long))
        (model,) = server.models
        before = sum(model.cpu_times()[:2])
        drawing.start()
        wait_until(lambda: sum(model.cpu_times()[:2]) - before > 1.0, timeout_s=60)
        assert drawing.is_alive(), "it is drawing"
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 130
        assert time.monotonic() - begun < 20
        wait_until(lambda: ended(workers), timeout_s=30)
        drawing.join(timeout=30)


def _swallow(server: Server, body: bytes) -> None:
    try:
        server.post(body)
    except (OSError, ValueError):
        pass


@pytest.mark.fault
@pytest.mark.slow
def test_a_model_that_dies_is_not_a_success(home: Path) -> None:
    with served(home, "faces@challenger") as server:
        server.answer(json.dumps(ONE).encode())
        (model,) = server.models
        model.kill()
        assert server.process.wait(timeout=30) == 75


def get(server: Server, path: str) -> tuple[int, str, bytes]:
    """Return status, type and body of a GET, whatever they are."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=120) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers.get_content_type(), refused.read()


def test_an_address_gives_the_image_of_a_request_as_a_file(server: Server) -> None:
    (predicted,) = server.answer(json.dumps({"dataframe_records": [{"seed": 3}], "params": {"num_steps": 2, "sampler": "euler"}}).encode())
    status, kind, image = get(server, "/image.png?seed=3&num_steps=2&sampler=euler")
    assert (status, kind, image) == (200, "image/png", base64.b64decode(predicted["image"]))
    assert image.startswith(b"\x89PNG")
    assert get(server, "/image.png")[:2] == (200, "image/png"), "all of it has defaults"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("seed=x", "seed 'x' is not a whole number"),
        ("seed=-1", "seed '-1' is not a whole number"),
        ("num_steps=0", "params.num_steps 0 must lie between 1 and 1000"),
        ("num_steps=2.5", "num_steps '2.5' is not a whole number"),
        ("steps=2", "'steps' is unknown: an image has seed, num_steps, sampler"),
        ("seed=1&seed=2", "a parameter is given twice"),
        ("sampler=nope", "sampler"),
        ("seed=99999999999999999999999", "is not a whole number"),
        ("seed=<script>alert(1)</script>", "is not a whole number"),
    ],
)
def test_a_wrong_parameter_is_a_400_of_one_line(server: Server, query: str, reason: str) -> None:
    status, kind, body = get(server, f"/image.png?{quote(query, safe='=&')}")
    assert (status, kind) == (400, "application/json")
    message = json.loads(body)["message"]
    assert reason in message
    assert "\n" not in message
    status, kind, page = get(server, f"/?{quote(query, safe='=&')}")
    assert (status, kind) == (200 if "sampler" in query else 400, "text/html"), "only the model knows its samplers"
    assert b"<script>alert" not in page


def test_a_person_can_look_at_faces_in_a_browser(server: Server, tmp_path: Path) -> None:
    page: Any
    with browser_page(chromium_or_skip(), width=640, height=760) as page:
        loaded = "document.querySelector('img')?.complete && document.querySelector('img').naturalWidth > 0"
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_function(loaded)
        page.locator("input[name=seed]").fill("7")
        page.locator("input[name=num_steps]").fill("2")
        page.get_by_role("button", name="Draw").click()
        page.wait_for_url("**/?seed=7&num_steps=2")
        page.wait_for_function(loaded)
        assert "image.png?seed=7&num_steps=2" in page.locator("code").inner_text()
        page.screenshot(path=str(Path(os.environ.get("CELEBDIT_DOCS_PICTURES") or tmp_path) / "serve-page.png"))
        for query, reason in (("sampler=nope", "sampler 'nope' is not one of"), (f"seed={2**32}", f"seed {2**32} must lie in")):
            page.goto(f"http://127.0.0.1:{server.port}/?{query}")
            page.locator(".refused").wait_for()
            assert reason in page.locator(".refused").inner_text()
            assert page.locator("img, code").count() == 0, "neither a broken image, nor a command that would be refused"
        page.goto(f"http://127.0.0.1:{server.port}/?num_steps=2&sampler=euler")
        page.locator("input[name=seed]").fill("3")
        page.get_by_role("button", name="Draw").click()
        page.wait_for_url("**/?seed=3&num_steps=2&sampler=euler")
        page.wait_for_function(loaded)


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [(502, "application/json", '{"detail": "no route"}'), (200, "text/html", "<h1>Sign in</h1>"), (503, "application/json", "null")],
)
def test_the_page_shows_what_a_proxy_answers_in_place_of_the_image(server: Server, status: int, kind: str, body: str) -> None:
    page: Any
    with fault_proxy(f"http://127.0.0.1:{server.port}", signed=False) as proxy, browser_page(chromium_or_skip()) as page:
        proxy.rule = lambda method, path, headers: (status, [("Content-Type", kind)], body.encode()) if "image.png" in path else None
        page.goto(f"{proxy.endpoint}/")
        page.locator(".refused").wait_for()
        assert page.locator(".refused").inner_text() == f"the server answered {status} {body}"
        assert page.locator("img").count() == 0
