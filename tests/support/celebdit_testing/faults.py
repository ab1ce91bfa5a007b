"""A proxy in front of a real server (S3 or MLflow) that injects faults, and knows whether each of them happened."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal
from urllib.parse import urlsplit

from celebdit_testing.http_server import Handler, serving

Kind = Literal[
    "500", "503", "403", "slow", "reset", "lost_answer", "truncated", "flipped", "flipped_upload", "stale", "empty_list", "expired"
]


Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers and content."""


@dataclass
class Fault:
    """What happens to the next `times` requests with this method whose path contains `path`.

    "stale" answers a path that was read before as it was answered the first time; it does not fire on another one.
    """

    kind: Kind
    method: str
    times: int = 1
    path: str = ""
    delay_s: float = 0.0
    fired: int = 0


@dataclass
class Proxy:
    """The running proxy: where it listens, what it is to do, and what it saw."""

    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    session_tokens: list[str] = field(default_factory=list)
    """Of each request with temporary credentials, its token."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """The first answer to each path that was read, which a stale server would give again."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    rule: Callable[[str, str, Mapping[str, str]], Answer | None] = lambda method, path, headers: None
    """Answers a request itself, by its method, path and headers, or None to forward it."""
    replacement: Callable[[str, str, int], Answer | None] = lambda method, path, status: None
    """Answers in place of the server, by method, path and its status, or None to pass its answer on."""

    @contextmanager
    def injecting(self, *faults: Fault) -> Iterator[None]:
        """Inject `faults` in the block; it is an error if one of them did not happen as often as it should."""
        self.requests.clear()
        self.ranges.clear()
        self.faults[:] = faults
        yield
        self.faults.clear()
        for fault in faults:
            assert fault.fired == fault.times, f"{fault.kind} on {fault.method} fired {fault.fired} times, not {fault.times}"

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.kind == "stale" and path not in self.answers:
                    continue
                if fault.method == method and fault.path in path and fault.fired < fault.times:
                    fault.fired += 1
                    return fault
        return None


_FIXED_ANSWERS: dict[str | None, Answer] = {
    "500": (500, [], b"<Error><Code>InternalError</Code></Error>"),
    "503": (503, [], b"<Error><Code>SlowDown</Code></Error>"),
    "403": (403, [], b"<Error><Code>AccessDenied</Code></Error>"),
    "expired": (400, [], b"<Error><Code>ExpiredToken</Code></Error>"),
    "empty_list": (200, [], b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
}


def refusal(status: int, code: str, message: str = "refused", *, region: str | None = None, **headers: str) -> Answer:
    """Return an answer of S3 with an error, which names the bucket's region if there is one."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{f'<Region>{region}</Region>' if region else ''}</Error>"
    return status, [("Content-Type", "application/xml"), *headers.items()], body.encode()


@contextmanager
def fault_proxy(upstream: str, *, signed: bool = True, clock_ahead_s: float = 0.0) -> Iterator[Proxy]:
    """Forward to the server at `upstream`, damaging what the test asks for; requests to an S3 server must be `signed`.

    With its clock `clock_ahead_s` ahead of this machine's, it refuses every request, as S3 does.
    """
    upstream_address, proxy = urlsplit(upstream).netloc, Proxy()

    class ProxyHandler(Handler):
        def handle_one_request(self) -> None:
            with suppress(ConnectionError):
                super().handle_one_request()

        def _forward(self) -> None:
            body = self.content()
            with proxy.lock:
                proxy.requests.append(f"{self.command} {self.path}")
                proxy.ranges += self.headers.get_all("Range", [])
                proxy.session_tokens += self.headers.get_all("X-Amz-Security-Token", [])
            assert not signed or "Authorization" in self.headers, "a request without credentials"
            fault = proxy.next_fault(self.command, self.path)
            kind = fault.kind if fault else None
            if fault is not None and kind == "slow":
                time.sleep(fault.delay_s)
            if kind in _FIXED_ANSWERS:
                self._answer(*_FIXED_ANSWERS[kind])
                return
            if kind == "reset":
                self._reset()
                return
            if kind == "stale":
                self._answer(*proxy.answers[self.path])
                return
            status, headers, answer = self._answer_of_rules() or self._ask(_flipped(body) if kind == "flipped_upload" else body)
            status, headers, answer = proxy.replacement(self.command, self.path, status) or (status, headers, answer)
            if self.command == "GET":
                proxy.answers.setdefault(self.path, (status, headers, answer))
            if kind == "lost_answer":
                self._reset()
            elif kind == "truncated":
                self._answer(status, headers, answer, cut=len(answer) // 2)
            else:
                self._answer(status, headers, _flipped(answer) if kind == "flipped" else answer)

        def _answer_of_rules(self) -> Answer | None:
            if clock_ahead_s:
                return refusal(403, "RequestTimeTooSkewed", Date=formatdate(time.time() + clock_ahead_s, usegmt=True))
            return proxy.rule(self.command, self.path, dict(self.headers.items()))

        def _ask(self, body: bytes) -> Answer:
            connection = http.client.HTTPConnection(upstream_address, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            answer = response.read()
            connection.close()
            return response.status, response.getheaders(), answer

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: int | None = None) -> None:
            self.send_response_only(status)
            named = {name.lower() for name, _ in headers}
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            if "content-length" not in named:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _forward  # noqa: N815 - the base class names them so

    with serving(ProxyHandler) as proxy.endpoint:
        yield proxy


def _flipped(data: bytes) -> bytes:
    """Return `data` with one bit in the middle flipped."""
    if not data:
        return data
    damaged = bytearray(data)
    damaged[len(damaged) // 2] ^= 1
    return bytes(damaged)
