"""Ports of this machine: bind one, check that one can be used, and ask whether a server answers.

Promises: a socket that `listen` returned is held by this process from then on, so no other process can take its port before a
server that inherits it begins. Requests go straight to this machine, whatever proxies are configured.
"""

import random
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path

LOOPBACK = "127.0.0.1"
_BACKLOG = 2048
_LOWEST_PORT = 20_000
_TRIES = 50
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def listen(port: int = 0) -> socket.socket:
    """Return a socket that listens on `port` of 127.0.0.1; 0 stands for any free port.

    Raises:
        OSError: if it cannot be bound, with the reason in `strerror`.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT can be used again
        listener.bind((LOOPBACK, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on; another process may take it before the caller does.

    It is below those that the system gives to outgoing connections, of which one could take it while a server starts.
    """
    for port in random.SystemRandom().sample(range(_LOWEST_PORT, _lowest_outgoing_port()), _TRIES):
        with suppress(OSError):
            return bindable_port(port)
    return bindable_port(0)


def _lowest_outgoing_port() -> int:
    try:
        lowest = int(_OUTGOING_PORTS.read_text().split()[0])
    except OSError:  # not Linux
        lowest = 0
    return max(lowest, _LOWEST_PORT + _TRIES)


def bindable_port(port: int) -> int:
    """Return `port` if a server can bind it on 127.0.0.1; 0 stands for any free port, as in `bind`.

    Raises:
        OSError: if it cannot be bound, with the reason in `strerror`.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
        return int(probe.getsockname()[1])


def is_listening(port: int, *, timeout_s: float = 1.0) -> bool:
    """Return whether a server accepts connections on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(timeout_s)
        return probe.connect_ex((LOOPBACK, port)) == 0


def http_status(url: str, *, timeout_s: float = 5.0, headers: Mapping[str, str] | None = None) -> int | None:
    """Return the status of a GET of `url`, an http address of this machine, or None if no server answers."""
    try:
        with open_here(url, timeout_s=timeout_s, headers=headers) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):  # HTTPException: what answers speaks no HTTP
        return None


def open_here(url: str, body: bytes | None = None, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """Send a GET, or a POST of `body`, to `url`, an http address of this machine, past every proxy; the caller closes the answer.

    Raises:
        OSError: if no server answers, or with another status than 200; that of a refusal is an HTTPError.
    """
    request = urllib.request.Request(url, body, dict(headers or {}))  # noqa: S310 - our own http://127.0.0.1
    response: HTTPResponse = _DIRECT.open(request, timeout=timeout_s)
    return response


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object, **named: object) -> None:
        return None


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
