"""Another user of this machine: a process of uid 65534, with an interpreter that it may run."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

STRANGER = 65534
STRANGERS_SERVER = """
import socket, sys, threading
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print(listener.getsockname()[1], flush=True)
requests = []
def serve():
    while True:
        connection, _ = listener.accept()
        requests.append(connection.recv(9999))
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
        connection.close()
threading.Thread(target=serve, daemon=True).start()
sys.stdin.readline()
print(sum(map(len, requests)), flush=True)
"""
"""Answers at the address and port of its arguments, which it prints; after a line of input it prints how many bytes it received."""


def stranger_python() -> str:
    """The interpreter of a stranger; skips the test where this user cannot become one."""
    if os.geteuid() != 0:
        pytest.skip(f"uid {os.geteuid()} cannot start a process as another user")
    candidates = [shutil.which(name, path="/usr/bin:/bin:/usr/local/bin") for name in ("python3", "python3.11", "python3.12", "python3.13")]
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", "pass"], user=STRANGER, group=STRANGER, extra_groups=[], cwd="/", check=False).returncode == 0:
            return python
    pytest.skip(f"no interpreter of {candidates} runs as uid {STRANGER}")


def start_stranger(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start `code` as a stranger, with pipes."""
    return subprocess.Popen(
        [stranger_python(), "-I", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
    )


def bytes_received(server: "subprocess.Popen[str]") -> int:
    """End a stranger's server and return how many bytes it received."""
    return int(server.communicate("\n", timeout=20)[0])


def as_stranger(code: str, *arguments: str, timeout_s: float = 60.0) -> Any:
    """What `code` prints as JSON when a stranger runs it."""
    with start_stranger(code, *arguments) as process:
        out, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, out
    return json.loads(out)


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that everybody can enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="celebdit-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
