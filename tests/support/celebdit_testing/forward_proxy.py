"""A forward proxy on 127.0.0.1, as companies have one: the only way to hosts outside, whose names nothing else resolves."""

import re
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from celebdit_testing.tcp_server import TcpServer, pump, running


@dataclass
class ForwardProxy:
    """Its address, and what it was asked for, like `CONNECT host:443` or `PUT host`."""

    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextmanager
def forward_proxy(outside: Mapping[str, str]) -> Iterator[ForwardProxy]:
    """Run a proxy until the block ends that reaches each host of `outside` at the address of a server of this machine, and no other."""
    proxy = ForwardProxy()

    class Forward(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method, target, _ = self.rfile.readline().decode().split(" ", 2)
            headers = list(iter(self.rfile.readline, b"\r\n"))
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            proxy.requests.append(f"{method} {url.netloc}")
            server = urlsplit(outside.get(url.hostname or "", ""))
            if server.port is None:
                self.wfile.write(b"HTTP/1.1 502 no such host\r\nContent-Length: 0\r\n\r\n")
                return
            with suppress(OSError), socket.create_connection((server.hostname or "", server.port)) as upstream:
                if method == "CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 connected\r\n\r\n")
                else:
                    kept = [line for line in headers if not re.match(rb"(host|connection|proxy-connection):", line, re.IGNORECASE)]
                    first = f"{method} {url.path}{f'?{url.query}' if url.query else ''} HTTP/1.1\r\nHost: {server.netloc}\r\n"
                    upstream.sendall(b"".join([first.encode(), b"Connection: close\r\n", *kept, b"\r\n"]))
                back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
                back.start()
                while data := self.rfile.read1(2**16):  # type: ignore[attr-defined]
                    upstream.sendall(data)
                back.join(10)

    with running(TcpServer(Forward)) as address:
        proxy.url = f"http://{address}"
        yield proxy
