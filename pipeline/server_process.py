"""Start, find and stop the process of an embedded server, even if its process id was reused or its port was taken by another process.

Promises: a process is touched only if it is this user's, was started when the recorded one was, and has the mark in its environment that
it was started with; an answer counts only if this process holds the socket that listens; stopping sends SIGTERM to the process and its
children, and SIGKILL after a grace period. The servers are in `services.py`.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import IO
from urllib.parse import urlsplit

import psutil

from components.environment import SERVER_MARK
from components.errors import BadInput
from components.system.ports import LOOPBACK, listen
from components.system.process_table import is_alive, start_ticks

_STOP_S = 15.0
_EXEC_LOOKS = 50
_SOCKET_LOOKS = 5


@dataclass(frozen=True)
class Server:
    """A running server: its URL, and what identifies its process."""

    url: str
    pid: int
    mark: str
    """A random text in its environment."""
    started: int | None = None
    """When it started, in clock ticks since the machine did, as `start_ticks` returns it."""

    def process(self) -> psutil.Process | None:
        """Return the process, or None if it has ended or its id belongs to another process now."""
        try:
            process = psutil.Process(self.pid)
            is_ours = process.uids().effective == os.geteuid() and self.started in (None, start_ticks(self.pid))
            return process if is_ours and self.environment().get(SERVER_MARK) == self.mark and is_alive(process) else None
        except (psutil.Error, OSError):
            return None

    def listens(self) -> bool:
        """Return whether the socket that listens on the port of the URL is open in the process or one of its children."""
        for _ in range(_SOCKET_LOOKS):
            process = self.process()
            if process is None:
                return False
            if _has_listener(process, (LOOPBACK, urlsplit(self.url).port)):
                return True
            time.sleep(0.05)  # the kernel's table can miss a socket while others come and go
        return False

    def environment(self) -> dict[str, str]:
        """Return the environment of the process; only its own user can read it."""
        process = psutil.Process(self.pid)
        for _ in range(_EXEC_LOOKS):
            environment: dict[str, str] = process.environ()
            if environment:
                return environment
            time.sleep(0.01)  # during exec the kernel shows an empty environment
        return {}

    def stop(self) -> None:
        """End the process and its children: SIGTERM, then SIGKILL."""
        process = self.process()
        if process is None:
            return
        family = [process]
        with suppress(psutil.Error):
            family += process.children(recursive=True)
        for member in family:
            with suppress(psutil.Error):
                member.terminate()
        for member in _still_alive(family, _STOP_S):
            with suppress(psutil.Error):
                member.kill()
        _still_alive(family, _STOP_S)
        with suppress(ChildProcessError, OSError):
            os.waitpid(self.pid, os.WNOHANG)


def find_server(url: str, mark: str) -> Server | None:
    """Return the server that was started with `mark` and whose process id was not recorded, or None if it does not run."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_ours = process.uids().effective == os.geteuid() and process.environ().get(SERVER_MARK) == mark
            if is_ours and is_alive(process):
                processes.append((process.create_time(), process.pid))
    if not processes:
        return None
    _, pid = min(processes)  # its children have the mark too
    return Server(url, pid, mark, start_ticks(pid))


def _has_listener(process: psutil.Process, address: tuple[str, int | None]) -> bool:
    with suppress(psutil.Error, OSError):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                connections = member.net_connections(kind="tcp")
                if any(connection.status == psutil.CONN_LISTEN and tuple(connection.laddr) == address for connection in connections):
                    return True
    return False


def open_listener(port: int | None, flag: str) -> socket:
    """Return a socket that listens on the requested port, which `flag` gives, or on any free one.

    Raises:
        BadInput: if the port cannot be bound.
    """
    try:
        return listen(port or 0)
    except OSError as error:
        raise BadInput(
            f"{flag} {port} cannot be used: {error.strerror}", hint="choose another port, or omit the option to get a free one"
        ) from error


def start_detached(command: list[str], environment: Mapping[str, str], folder: Path, log: IO[bytes], inherited: socket | None) -> int:
    """Start a process that outlives this one, in a session of its own and in `folder`, and return its id.

    The files that it makes are its user's alone; it inherits the descriptor of `inherited`.
    """
    process = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,
        pass_fds=() if inherited is None else (inherited.fileno(),),
    )
    return process.pid


def _still_alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all of `processes` have ended, at most so many seconds, and return those that are still alive.

    A zombie counts as ended: its parent may be another command that uses the servers and continues.
    """
    deadline_s = time.monotonic() + seconds
    while alive := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(0.05)
    return alive
