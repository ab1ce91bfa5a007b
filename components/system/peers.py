"""Who answers at a port of this machine: connections to the embedded servers are made only while their user holds the port.

Promises: between processes of one user namespace on Linux, nothing is sent to a process of another user that has taken the port of an
embedded server after that has ended; elsewhere nothing is checked.
"""

import functools
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.system.ports import LOOPBACK

_LISTENS = "0A"
_TABLE = Path("/proc/net/tcp")
_NAMESPACE = Path("/proc/self/ns/user")


@dataclass(frozen=True)
class OwnServers:
    """Ports of this machine, and the user who has them."""

    uid: int
    user_namespace: int
    """In which `uid` is that user; in a container the same user can have another number."""
    ports: frozenset[int]

    @classmethod
    def of_this_user(cls, ports: frozenset[int]) -> "OwnServers":
        """Return a description of servers that this process or another one of its user has started."""
        return cls(os.geteuid(), _user_namespace(), ports)

    @classmethod
    def parse(cls, text: str) -> "OwnServers":
        """Return what `str` of a description gave.

        Raises:
            ValueError: if it is none.
        """
        uid, namespace, ports = text.split(":")
        return cls(int(uid), int(namespace), frozenset(int(port) for port in ports.split(",")))

    def __str__(self) -> str:
        return f"{self.uid}:{self.user_namespace}:{','.join(map(str, sorted(self.ports)))}"

    def is_held(self, port: int) -> bool:
        """Return whether the socket that listens on `port` of 127.0.0.1 is the user's, or cannot be looked up from here."""
        if self.user_namespace != _user_namespace():
            return True
        try:
            sockets = [line.split() for line in _TABLE.read_text().splitlines()[1:]]
        except OSError:
            return True
        address = f"{int.from_bytes(socket.inet_aton(LOOPBACK), sys.byteorder):08X}:{port:04X}"
        return any(fields[1] == address and fields[3] == _LISTENS and int(fields[7]) == self.uid for fields in sockets)


def guard(servers: OwnServers) -> None:
    """Check every connection that boto3 and MLflow open to one of the servers from now on; both open them with urllib3."""
    from urllib3.connection import HTTPConnection  # noqa: PLC0415 - whoever connects has imported it

    connect: Any = HTTPConnection._new_conn
    replaced: Any = HTTPConnection
    replaced._new_conn = _check_connections(getattr(connect, "__wrapped__", connect), servers)


def _check_connections(connect: Callable[[Any], socket.socket], servers: OwnServers) -> Callable[[Any], socket.socket]:
    @functools.wraps(connect)
    def connect_checked(connection: Any) -> socket.socket:
        from urllib3.exceptions import NewConnectionError  # noqa: PLC0415

        connected = connect(connection)
        if connection.host == LOOPBACK and connection.port in servers.ports and not servers.is_held(connection.port):
            connected.close()
            raise NewConnectionError(connection, f"the server at port {connection.port} has ended, and a process of another user answers")
        return connected

    return connect_checked


def _user_namespace() -> int:
    try:
        return _NAMESPACE.stat().st_ino
    except OSError:
        return 0
