"""What the servers of the tests share: HTTP on 127.0.0.1 for as long as a block lasts, answers in JSON, and answers that get lost."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from celebdit_testing.tcp_server import running


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One request; subclasses answer it in `do_GET`, `do_POST` and so on."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    @property
    def target(self) -> str:
        """The path without its query."""
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    def content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: Any = b"", kind: str = "application/json") -> None:
        """Answer with bytes as they are, or with anything else as JSON; a client that is gone does not matter."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def hang_up(self) -> None:
        """End the connection without an answer."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """Serve until the block ends and yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    with running(server) as address:
        yield f"http://{address}"


@dataclass
class FixedAnswer:
    """A server that answers every request with the same bytes and closes, and the requests since these were chosen."""

    address: str = ""
    raw: bytes = b""
    requests: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)

    def answer_with(self, raw: bytes, *, delay_s: float = 0.0) -> None:
        self.raw, self.delay_s = raw, delay_s
        self.requests.clear()


@contextmanager
def answering() -> Iterator[FixedAnswer]:
    """Run such a server until the block ends."""
    server = FixedAnswer()

    class Fixed(Handler):
        def _answer(self) -> None:
            self.content()
            server.requests.append(f"{self.command} {self.path}")
            self.close_connection = True
            server.ended.wait(server.delay_s)
            with suppress(OSError):
                self.wfile.write(server.raw)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _answer  # noqa: N815 - named by the library

    with serving(Fixed) as server.address:
        try:
            yield server
        finally:
            server.ended.set()
