"""The processes of the steps on one machine, forked from one that has imported once what they all need.

kfp's local runner starts an interpreter per step, and each imports kfp, boto3 and MLflow again: two seconds of processor time for a step
that finds its work done. Promises: a step has a process of its own, with the environment, the folder, the signal handlers and the import
path of the runner, as one that kfp starts; nothing listens: the runner and the process that forks share a pair of sockets without a name;
no thread of Python exists where a process is forked (OpenBLAS and jemalloc, which have threads, stop or repair theirs at a fork). A
command that is not of the form that kfp 2.17 writes, and every command outside Linux, is started by kfp itself.
"""

import importlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path

from components.errors import CelebditError
from components.storage.client import prepare_clients
from components.system.garbage import import_without_search
from components.system.process import die_with_parent
from components.system.process_name import show_command
from components.system.python_process import python_command
from components.tracking.light_mlflow import look_up_once

_PRELOADED = (
    "kfp.dsl.executor_main",
    "components.runtime.context",
    "components.reports.html",
    "components.stores.quarantine",
    "components.tracking.client",
    "components.tracking.pipeline_run",
    "components.tracking.run_parameters",
    "components.registry.client",
)
"""What most steps import, finished or not. Not torch: a step that finds its work done needs none."""
_SCRIPT = re.compile(
    r'program_path=\$\(mktemp -d\) printf "%s" "\$0" > "\$program_path/ephemeral_component\.py" '
    r'_KFP_RUNTIME=true .+ -m kfp\.dsl\.executor_main --component_module_path "\$program_path/ephemeral_component\.py" "\$@"'
)
_SHELL_PARTS = 4
"""A shell, its option, its script, and the source of the component; the arguments of the executor follow."""
_FAILED = 70
_REQUEST_BYTES = 8


class StepProcesses:
    """The runner's side: runs one step at a time."""

    def __init__(self, connection: socket.socket, forking: int) -> None:
        """`forking` is the process at the other end of `connection`."""
        self._connection = connection
        self._forking = forking
        self._is_lost = False

    @cached_property
    def _is_ready(self) -> bool:
        return _receive(self._connection) is not None

    def can_run(self, command: Sequence[str]) -> bool:
        """Return whether `command` is one that kfp's local runner starts for a component that installs no packages."""
        is_known = len(command) > _SHELL_PARTS and _SCRIPT.fullmatch(" ".join(command[2].split())) is not None
        return is_known and not self._is_lost and self._is_ready

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Run the step that kfp would start with `command` and more `environment`; return its exit status, negative for a signal.

        If the process that forks is killed, the step is asked to stop, and the status is that of the process that forks.
        """
        sys.stdout.flush()  # the step writes to the same file
        request = {"source": command[_SHELL_PARTS - 1], "arguments": list(command[_SHELL_PARTS:]), "environment": dict(environment or {})}
        answer = None
        with suppress(OSError):
            _send(self._connection, json.dumps(request).encode())
            answer = _receive(self._connection)
        self._is_lost = answer is None  # it was killed; kfp starts what follows, like the step that closes the run
        return self._status or _FAILED if answer is None else int(answer)

    def close(self) -> None:
        """End the process that forks, and wait for it."""
        self._connection.close()
        _ = self._status

    @cached_property
    def _status(self) -> int:
        """Exit status of the process that forks, once it has ended; negative for a signal."""
        _, status = os.waitpid(self._forking, 0)
        return os.waitstatus_to_exitcode(status)


def fork_steps() -> StepProcesses:
    """Fork the process that forks the steps, and return the runner's side of it.

    Call it in the main function of a process, before that starts a thread: the forked processes never return from here, they end as an
    interpreter does at the end of its program.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    if forking := os.fork():
        theirs.close()
        return StepProcesses(ours, forking)
    ours.close()
    raise SystemExit(_fork_each(theirs))


def _fork_each(connection: socket.socket) -> int:
    """Fork a process per request until the runner ends; return the exit status of this process, which may be one of those."""
    look_up_once()
    with import_without_search():  # nor is there one in a step of what is imported here, which would copy all pages
        for name in _PRELOADED:
            importlib.import_module(name)
        with suppress(CelebditError):  # the step that needs a client reports it
            prepare_clients()
    with closing(connection):
        if threading.active_count() > 1:
            return _FAILED
        _send(connection, b"ready")
        while (raw := _receive(connection)) is not None:
            step = os.fork()
            if not step:
                connection.close()
                return _run_step(**json.loads(raw))
            _, status = os.waitpid(step, 0)
            _send(connection, str(os.waitstatus_to_exitcode(status)).encode())
    return 0


def _run_step(source: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Do what kfp's command does: write the component to a file and let the executor run it."""
    from kfp.dsl.executor_main import executor_main  # noqa: PLC0415

    die_with_parent(signal.SIGTERM)
    show_command(python_command("kfp.dsl.executor_main", *arguments[-2:]))
    os.environ.update(environment, _KFP_RUNTIME="true")
    module = Path(tempfile.mkdtemp(), "ephemeral_component.py")
    module.write_text(source)
    sys.argv = ["executor_main", "--component_module_path", str(module), *arguments]
    executor_main()
    return 0


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(len(data).to_bytes(_REQUEST_BYTES, "big") + data)


def _receive(connection: socket.socket) -> bytes | None:
    """Return what the other side sent, or None if it has ended."""
    size = _receive_bytes(connection, _REQUEST_BYTES)
    return None if size is None else _receive_bytes(connection, int.from_bytes(size, "big"))


def _receive_bytes(connection: socket.socket, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        try:
            part = connection.recv(count - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return data
