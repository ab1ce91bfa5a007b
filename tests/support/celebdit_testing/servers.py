"""Real servers for tests: S3 by rclone on a directory and by moto in memory, and MLflow; all on 127.0.0.1."""

import logging
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celebdit_testing.pods import BRIDGE, Network
from celebdit_testing.waiting import wait_until

from components.system.ports import free_port, http_status, is_listening
from components.system.process import spawn, stop
from pipeline.server_database import create_database

ACCESS_KEY = "test-access-key"
SECRET_KEY = "canary-secret-0123456789"


def wait_for_port(port: int, *, deadline_s: float = 30.0, pods: Network | None = None) -> None:
    def listens() -> bool:
        return is_listening(port) if pods is None else port in {number for _, number in pods.listening()}

    wait_until(listens, timeout_s=deadline_s, every_s=0.05, reason=lambda: f"nothing listens on port {port}")


@contextmanager
def rclone_server(folder: Path, *, port: int | None = None, pods: Network | None = None) -> Iterator[str]:
    """Serve `folder` as S3 and yield the endpoint, of this machine or of the network of `pods`; several servers may share a folder."""
    port = port or free_port()
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    environment = {**os.environ, "RCLONE_AUTH_KEY": f'"{ACCESS_KEY},{SECRET_KEY}"', "RCLONE_CONFIG": "/dev/null"}
    host, prefix = ("127.0.0.1", []) if pods is None else (BRIDGE, pods.enter())
    serve = [str(rclone), "serve", "s3", "--addr", f"{host}:{port}", "--etag-hash", "", "--dir-cache-time", "1s", str(folder)]
    with (folder / "rclone.log").open("ab") as log:
        process = spawn([*prefix, *serve], environment=environment, stdout=log, new_group=True)
        try:
            wait_for_port(port, pods=pods)
            yield f"http://{host}:{port}"
        finally:
            stop(process, grace_s=5.0)


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve S3 from memory and yield the endpoint."""
    from moto.server import ThreadedMotoServer

    # Its threads log each request to the stream that tests of this process capture, in the middle of lines where a test has set up logging.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def wait_for_health(url: str, process: "subprocess.Popen[bytes]", log: Path, *, deadline_s: float = 180.0) -> None:
    """Wait until the MLflow server at `url` answers; the error holds its log if it ends or does not answer."""
    wait_until(
        lambda: http_status(f"{url}/health") == 200,
        timeout_s=deadline_s,
        every_s=0.2,
        alive=lambda: process.poll() is None,
        reason=lambda: log.read_text()[-4000:],
    )


@dataclass
class MlflowServer:
    """`mlflow server` on a folder, which can be killed and started again at the same address."""

    folder: Path
    port: int
    pods: Network | None = None
    """The network of pods at whose bridge it listens, None for this machine alone."""
    python: Path = Path(sys.executable)
    """The interpreter of the environment whose MLflow it is."""
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    """Below which it answers."""

    @property
    def host(self) -> str:
        return "127.0.0.1" if self.pods is None else BRIDGE

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    def start(self, *, deadline_s: float = 180.0) -> None:
        if self.python == Path(sys.executable):  # another MLflow has another schema
            create_database(self.folder / "mlflow.db")
        environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "MLFLOW_ARTIFACTS_DESTINATION": str(self.folder / "artifacts"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **self.environment,
        }
        command = [
            str(self.python),
            "-m",
            "mlflow",
            "server",
            "--host",
            self.host,
            "--port",
            str(self.port),
            "--workers",
            "1",
            *self.options,
        ]
        prefix = [] if self.pods is None else self.pods.enter()
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = spawn([*prefix, *command], environment=environment, stdout=log, new_group=True)
        if self.pods is not None:
            wait_for_port(self.port, deadline_s=deadline_s, pods=self.pods)
            return
        wait_for_health(self.url, self._process, self.folder / "mlflow.log", deadline_s=deadline_s)

    def kill(self) -> None:
        """End it and all its workers with SIGKILL, in the middle of whatever they do."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def mlflow_server(folder: Path, *, pods: Network | None = None, **how: Any) -> Iterator[MlflowServer]:
    """Serve MLflow from SQLite below `folder`; `how` are further fields of `MlflowServer`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = MlflowServer(folder, free_port(), pods, **how)
    server.start()
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.kill()
