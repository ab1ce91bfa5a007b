"""Servers of sockets in a thread of the test, and the bytes that they pass on."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class TcpServer(socketserver.ThreadingTCPServer):
    """Listens at a free port of 127.0.0.1 with a thread for each connection, which its end does not wait for."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)


@contextmanager
def running(server: socketserver.TCPServer) -> Iterator[str]:
    """Let `server` answer until the block ends, and yield its address as `host:port`."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until the source ends, and say so to the target."""
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
