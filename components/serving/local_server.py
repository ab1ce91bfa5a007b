"""Runs the server of a version on this machine, in a process that has none of our secrets.

Promises: it listens on 127.0.0.1 alone, on a socket that this process bound, so that whatever answers there is ours; its environment holds
what a model needs to compute and no credentials; it ends with this process. What it serves and refuses is in `server.py`.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from components.errors import BadInput, DataRefused, TemporaryFailure, shorten
from components.registry.version_files import ModelFiles
from components.system.child_environment import child_environment
from components.system.heap import HEAP
from components.system.ports import http_status, listen
from components.system.process import signal_from_outside, spawn, stop
from components.system.python_process import python_command

MEMORY_HINT = "start it again; the system kills it if memory runs out"

_READY_S = 180.0
_STOP_S = 2.0


@contextmanager
def serve_locally(files: ModelFiles, *, port: int | None = None) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """Serve a version with a manifest on `port` of 127.0.0.1, None for any free one, inside the block; yields its URL and process.

    Its output goes to a file; if it does not start, the last lines are in the error.

    Raises:
        BadInput: if the port is in use. DataRefused: if the server refuses the files or cannot load them. TemporaryFailure: if it is
            killed before it answers, or takes too long.
    """
    assert files.manifest_sha256 is not None, "code is served only after it was checked"
    try:
        listening = listen(port or 0)
    except OSError as error:
        raise BadInput(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", hint="choose another with --port") from error
    with tempfile.TemporaryFile() as log, _at_plain_path(files.folder) as folder:
        with listening:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            server = (str(folder), "--manifest", files.manifest_sha256, "--socket", str(listening.fileno()))
            command = python_command("components.serving.server", *server)
            environment = {**HEAP, **child_environment("serving", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")}
            process = spawn(command, environment=environment, stdout=log, new_group=True, folder=folder, descriptors=[listening.fileno()])
        try:
            _wait_for(url, process, log)
            yield url, process
        finally:
            stop(process, grace_s=_STOP_S)


@contextmanager
def _at_plain_path(folder: Path) -> Iterator[Path]:
    """Yield `folder`, or for the block links to its files, or copies, at a path that MLflow takes for what it is.

    MLflow (3.17) takes a path for a URI, twice: it decodes `%20`, and cuts at `?` and `#`.
    """
    if not set(str(folder.absolute())) & set("%?#;"):
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="celebdit-served-") as temporary:
        linked = Path(temporary) / "model"
        shutil.copytree(folder, linked, copy_function=_link)
        yield linked


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system, or on one without links
        shutil.copy2(source, target)


def check_not_killed(process: "subprocess.Popen[bytes]", *, wait_s: float = 0.0) -> None:
    """Check that the server of a model was not killed from outside, which says nothing about the model; waits for it to end.

    Raises:
        TemporaryFailure: naming the signal.
    """
    if name := signal_from_outside(process, wait_s=wait_s):
        raise TemporaryFailure(f"the server of the model was killed by {name}", hint=MEMORY_HINT)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    deadline_s = time.monotonic() + _READY_S
    while http_status(f"{url}/ping", timeout_s=1.0) != 200:
        check_not_killed(process)
        if process.poll() is not None:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines() or ["no output"]
            raise DataRefused(f"the server of the model did not start: {shorten(lines[-1], max_characters=300)}")
        if time.monotonic() > deadline_s:
            late = f"the server of the model did not answer within {_READY_S:.0f} s"
            raise TemporaryFailure(late, hint="run the same command again when the machine is less busy")
        time.sleep(0.1)
