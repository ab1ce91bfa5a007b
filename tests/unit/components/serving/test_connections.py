"""Clients that connect and ask for nothing, or slowly: they keep no place for long, and a request under way is not cut off."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from celebdit_testing.waiting import wait_until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from components.serving import connections
from components.system.ports import http_status, listen

REQUEST_S = 0.4


async def slow(request: Request) -> PlainTextResponse:
    await asyncio.sleep(3 * REQUEST_S)
    return PlainTextResponse("drawn")


async def ping(request: Request) -> PlainTextResponse:
    return PlainTextResponse("pong")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server with four places."""
    monkeypatch.setattr(connections, "REQUEST_S", REQUEST_S)
    app = Starlette(routes=[Route("/slow", slow), Route("/ping", ping)])
    config = uvicorn.Config(app, http=connections.PromptConnection, limit_concurrency=5, log_level="error", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    with listen() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield int(listening.getsockname()[1])
        server.should_exit = True
        thread.join(10)


def connect(port: int, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(sent)
    return client


@pytest.mark.parametrize("sent", [b"", b"GET /ping HTTP/1.1\r\nHost:", b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n"])
def test_idle_clients_take_no_place_for_long(port: int, sent: bytes) -> None:
    wait_until(lambda: http_status(f"http://127.0.0.1:{port}/ping") == 200)
    idle = [connect(port, sent) for _ in range(4)]
    wait_until(lambda: http_status(f"http://127.0.0.1:{port}/ping") == 503, timeout_s=5)
    wait_until(lambda: http_status(f"http://127.0.0.1:{port}/ping") == 200, timeout_s=5)
    for client in idle:
        while client.recv(4096):
            pass
        client.close()


def test_a_client_that_sends_a_byte_at_a_time_is_cut_off(port: int) -> None:
    client, ended = connect(port, b"GET /ping HTTP/1.1\r\n"), threading.Event()

    def drip() -> None:
        while not ended.wait(REQUEST_S / 8):
            try:
                client.sendall(b"a")
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert client.recv(4096) == b""
    except ConnectionResetError:
        pass
    finally:
        ended.set()
        thread.join()
        client.close()


def test_a_request_under_way_and_one_that_waits_behind_it_are_answered(port: int) -> None:
    with connect(port, b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n" * 2) as client:
        answers = b""
        while answers.count(b"drawn") < 2:
            part = client.recv(4096)
            assert part, answers
            answers += part
