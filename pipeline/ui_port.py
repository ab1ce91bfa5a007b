"""The port of the embedded MLflow: the same at every start of a home, so that links which earlier commands printed stay valid.

Promises: the first start of a home takes the first free port from 5000 on, a later one the port of the first or the one that was asked for
last; if another program has it, the next free one is taken this time, and the remembered one is tried again at the next start.
"""

from contextlib import suppress
from pathlib import Path
from socket import socket

from components.system.ports import listen
from components.system.private import write_private
from pipeline.home import UI_PORT
from pipeline.server_process import open_listener

FIRST_PORT = 5000
_PORTS = range(FIRST_PORT, FIRST_PORT + 200)


def open_ui_listener(home: Path, port: int | None) -> socket:
    """Return a socket that listens on `port` or, without one, on the port of this home.

    Raises:
        BadInput: if `port` cannot be bound.
    """
    remembered = _read_port(home)
    listener = open_listener(port, "--mlflow-port") if port is not None else _first_free(remembered)
    if port is not None or remembered is None:
        write_private(home / UI_PORT, f"{listener.getsockname()[1]}\n")
    return listener


def _first_free(remembered: int | None) -> socket:
    for port in (*([] if remembered is None else [remembered]), *_PORTS):
        with suppress(OSError):
            return listen(port)
    return listen()


def _read_port(home: Path) -> int | None:
    with suppress(OSError, ValueError):
        port = int((home / UI_PORT).read_bytes()[:8])
        return port if 0 < port < 2**16 else None
    return None
