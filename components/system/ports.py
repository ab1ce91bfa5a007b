"""Ports of this machine: find a free one, check that one can be used, and ask whether a server answers."""

import socket
import urllib.error
import urllib.request

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on; another process may take it before the caller does."""
    return bindable_port(0)


def bindable_port(port: int) -> int:
    """Return `port` if a server can bind it on 127.0.0.1; 0 stands for any free port, as in `bind`.

    Raises:
        OSError: if it cannot be bound, with the reason in `strerror`.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT can be used again
        probe.bind((LOOPBACK, port))
        return int(probe.getsockname()[1])


def listen(port: int = 0) -> socket.socket:
    """Return a socket that listens on `port` of 127.0.0.1; 0 stands for any free port.

    Raises:
        OSError: if it cannot be bound, with the reason in `strerror`.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT can be used again
        listener.bind((LOOPBACK, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def is_listening(port: int, *, timeout_s: float = 1.0) -> bool:
    """Return whether a server accepts connections on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(timeout_s)
        return probe.connect_ex((LOOPBACK, port)) == 0


def http_status(url: str, *, timeout_s: float = 5.0) -> int | None:
    """Return the status of a GET of `url`, an http address of this machine, or None if no server answers."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310 - our own http://127.0.0.1
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
