"""The embedded servers: S3 and MLflow on this machine, used if no endpoints are configured.

Promises: both listen on 127.0.0.1 only, on free ports; the S3 secret is only in the environment of the servers, never in a file; servers
are identified by process id and a mark in their environment, so no other process is stopped; several commands share them and the last
one stops them, even if it is killed, unless they were started to stay. Data is kept below `.celebdit/`.
"""

import fcntl
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from components.environment import MLFLOW, SERVER_MARK, STORE
from components.errors import BadInput, TemporaryFailure
from components.system.ports import bindable_port, free_port, http_status
from components.system.process import spawn
from pipeline.server_commands import BUCKET, MLFLOW_BUCKET, mlflow_server, s3_environment, s3_secret, s3_server
from pipeline.server_process import Server

_READY_S = 180.0
_WATCHDOG = "watchdog"
_WATCH_EVERY_S = 1.0


@dataclass(frozen=True)
class Endpoints:
    """URLs of the servers, and the environment variables with which a process reaches them."""

    s3_url: str
    mlflow_url: str
    environment: dict[str, str]


class Services:
    """The two servers of one state folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self._state = self.home / "services.json"

    def start(self, *, stay: bool, s3_port: int | None = None, mlflow_port: int | None = None) -> None:
        """Start the servers that are not running and return at once; see `wait`. With `stay` they run until `stop`.

        Raises:
            BadInput: if the state folder cannot be written, or a requested port is in use.
        """
        self._make_home()
        with self._locked("services.lock"):
            state = self._read()
            for name, port in (("s3", s3_port), ("mlflow", mlflow_port)):
                server = state[name]
                if server is not None and port is not None and not server.url.endswith(f":{port}"):
                    raise BadInput(f"the {name} server is already running at {server.url}", hint="stop it first: celebdit services down")
            if state["s3"] is None:
                state["s3"] = self._start_s3(_port(s3_port, "--s3-port"))
            if state["mlflow"] is None:
                state["mlflow"] = self._start_mlflow(_port(mlflow_port, "--mlflow-port"), state["s3"])
            if state[_WATCHDOG] is None and not stay:
                state[_WATCHDOG] = self._spawn(_WATCHDOG, [sys.executable, "-m", "pipeline.services", str(self.home)], dict(os.environ), 0)
            self._write(state, stay=stay or self.stays())

    @contextmanager
    def used(self, *, stay: bool = False) -> Iterator[None]:
        """Keep the servers running inside the block; the last user stops them after it, unless they were started to stay."""
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
            return  # another command is using them
        if not self.stays():
            self.stop()

    def wait(self, *, on_wait: Callable[[str], None] = lambda name: None) -> Endpoints:
        """Wait until both servers answer and return their endpoints.

        Raises:
            TemporaryFailure: if one does not start; the hint has the path of its log.
        """
        state = self._read()
        s3, mlflow = state["s3"], state["mlflow"]
        if s3 is None or mlflow is None:
            raise TemporaryFailure("the embedded servers are not running", hint="start them: celebdit ui")
        self._await("s3", s3, s3.url, on_wait)
        self._await("mlflow", mlflow, f"{mlflow.url}/health", on_wait)
        environment = {
            **s3_environment(s3.url, s3_secret(s3)),
            MLFLOW: mlflow.url,
            STORE: f"s3://{BUCKET}/main",
        }
        return Endpoints(s3_url=s3.url, mlflow_url=mlflow.url, environment=environment)

    def stop(self) -> list[str]:
        """Stop the servers and return the names of those that were running."""
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
        """Return the running servers by name."""
        return {name: server for name, server in self._read().items() if server is not None and name != _WATCHDOG}

    def watch(self) -> None:
        """Stop the servers if the last user was killed before it could; returns once they are stopped or started to stay."""
        with (self.home / "services.users").open("a") as users:
            while self.running() and not self.stays():
                time.sleep(_WATCH_EVERY_S)
                self._release(users.fileno())
                fcntl.flock(users, fcntl.LOCK_UN)

    def stays(self) -> bool:
        """Return whether the servers keep running after the command that started them."""
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
                f"{self.home} cannot be written: {error.strerror}", hint="choose another folder with --home or CELEBDIT_HOME"
            ) from error

    def _start_s3(self, port: int) -> Server:
        command, environment = s3_server(self.home / "s3", port)
        return self._spawn("s3", command, environment, port)

    def _start_mlflow(self, port: int, s3: Server | None) -> Server:
        assert s3 is not None, "object storage is started first"
        command, environment = mlflow_server(self.home / "mlflow.db", port, s3)
        return self._spawn("mlflow", command, environment, port)

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], port: int) -> Server:
        mark = uuid.uuid4().hex
        with (self.home / "logs" / f"{name}.log").open("ab") as log:
            process = spawn(command, environment={**environment, SERVER_MARK: mark}, stdout=log, new_group=True, death_signal=None)
        return Server(url=f"http://127.0.0.1:{port}", pid=process.pid, mark=mark)

    def _await(self, name: str, server: Server, url: str, on_wait: Callable[[str], None]) -> None:
        deadline_s = time.monotonic() + _READY_S
        while (http_status(url) or 500) >= 500:  # S3 answers an unsigned request with 403
            if server.process() is None:
                raise TemporaryFailure(
                    f"the {name} server stopped while it was starting: {_last_line(self._log(name))}",
                    hint=f"see its log: {self._log(name)}",
                )
            if time.monotonic() > deadline_s:
                raise TemporaryFailure(f"the {name} server did not answer within {_READY_S:.0f} s", hint=f"see its log: {self._log(name)}")
            on_wait(name)
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _read(self) -> dict[str, Server | None]:
        """Return the recorded servers whose processes are running."""
        servers: dict[str, Server | None] = {"s3": None, "mlflow": None, _WATCHDOG: None}
        with suppress(OSError, ValueError, TypeError, KeyError):
            recorded = json.loads(self._state.read_text())["servers"]
            for name in servers:
                if name in recorded:
                    server = Server(**recorded[name])
                    servers[name] = server if server.process() is not None else None
        if servers["s3"] is None and servers["mlflow"] is not None:
            servers["mlflow"].stop()  # it uses the endpoint and the secret of a server that has stopped
            servers["mlflow"] = None
        return servers

    def _write(self, state: dict[str, Server | None], *, stay: bool) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"servers": {name: asdict(server) for name, server in state.items() if server}, "stay": stay}))
        partial.replace(self._state)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self.home / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _port(requested: int | None, flag: str) -> int:
    """Return the requested port if it can be used, or any free one."""
    try:
        return free_port() if requested is None else bindable_port(requested)
    except OSError as error:
        raise BadInput(
            f"{flag} {requested} cannot be used: {error.strerror}", hint="choose another port, or omit the option to get a free one"
        ) from error


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "its log is empty"


if __name__ == "__main__":
    Services(Path(sys.argv[1])).watch()
