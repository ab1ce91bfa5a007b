"""The embedded servers: S3 and MLflow on this machine, used if no endpoints are configured.

Promises: both listen on 127.0.0.1 only, on sockets that this process binds, and ask for a secret that is new at each start and only in
the environment of the servers, never in a file; servers are identified by process id, start time and a mark in their environment, so no
other process is stopped, and no request goes to a process that does not hold the socket that listens; several commands share them
and the last one stops them, even if it is killed, unless they were started to stay. Data is kept below `.celebdit/`.
"""

import fcntl
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import socket

from components.environment import SERVER_MARK, STORE_DISK, TRACKING_TOKEN
from components.errors import BadInput, TemporaryFailure
from components.system.child_environment import child_environment
from components.system.disk import RUN_FILES, require_writable
from components.system.ports import http_status
from components.system.process_table import start_ticks
from components.system.python_process import python_command
from pipeline.embedded_environment import client_environment, storage_environment
from pipeline.home import LOCK, STATE, USERS, hold_lock, make_home
from pipeline.server_commands import BUCKET, MLFLOW_BUCKET, mlflow_server, mlflow_token, s3_secret, s3_server
from pipeline.server_database import prepare_database
from pipeline.server_process import Server, open_listener, start_detached
from pipeline.server_record import WATCHDOG, ServerRecord, stop_unusable
from pipeline.service_users import ServiceUsers
from pipeline.token_gate import link
from pipeline.ui_port import open_ui_listener

_READY_S = 180.0
_ROOM_BYTES = 32 * 2**20
"""What the servers need to start: a database and logs."""
_OTHER_HOME = "choose another folder with --home or CELEBDIT_HOME"
_WATCH_EVERY_S = 1.0


@dataclass(frozen=True)
class Endpoints:
    """URLs of the servers, and the environment variables with which a process reaches them."""

    s3_url: str
    mlflow_url: str
    environment: dict[str, str]

    def link(self, url: str) -> str:
        """Return `url`, an address in the MLflow UI, as a link that a person can open: it contains the token."""
        return link(url, self.environment[TRACKING_TOKEN])


class Services:
    """The two servers of one state folder."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self._record = ServerRecord(self.home / STATE)

    def start(self, *, stay: bool, s3_port: int | None = None, mlflow_port: int | None = None, mlflow: bool = True) -> None:
        """Start the servers that are not running and return at once; see `wait`. With `stay` they run until `stop`.

        Without `mlflow` object storage alone is started.

        Raises:
            BadInput: if the state folder cannot be written or made private, or a requested port is in use.
        """
        self.make_home()
        ports = {"s3": s3_port, "mlflow": mlflow_port} if mlflow else {"s3": s3_port}
        with hold_lock(self.home / LOCK), ExitStack() as stack:
            state = self._record.read()
            stop_unusable(state)
            for name, port in ports.items():
                server = state[name]
                if server is not None and port is not None and not server.url.endswith(f":{port}"):
                    raise BadInput(f"the {name} server is already running at {server.url}", hint="stop it first: celebdit services down")
            if mlflow and state["mlflow"] is None:
                prepare_database(self.home)
            # Both ports are taken before either server starts.
            listeners = {
                name: stack.enter_context(open_ui_listener(self.home, port) if name == "mlflow" else open_listener(port, "--s3-port"))
                for name, port in ports.items()
                if state[name] is None
            }
            write = partial(self._record.write, state, stay=stay or self.stays())
            write()
            if state[WATCHDOG] is None and not stay:  # first, so that it stops the others if this process is killed before it has them all
                watchdog = python_command("pipeline.services", str(self.home))
                state[WATCHDOG] = self._spawn(WATCHDOG, watchdog, child_environment("server"), write)
                write()
            if "s3" in listeners:
                command, environment = s3_server(self.home / "s3", listeners["s3"].fileno())
                state["s3"] = self._spawn("s3", command, environment, write, listeners["s3"])
                write()
            if "mlflow" in listeners:
                assert state["s3"] is not None, "object storage is started first"
                command, environment = mlflow_server(listeners["mlflow"].fileno(), state["s3"])
                state["mlflow"] = self._spawn("mlflow", command, environment, write, listeners["mlflow"])
                write()

    @contextmanager
    def use(self, *, stay: bool = False, what: str | None = None, mlflow: bool = True) -> Iterator[None]:
        """Keep the servers running inside the block, without `mlflow` object storage alone; the last user stops them after it.

        Those that were started to stay are not stopped.
        `what` is what they are used for, like `run smoke-...`, for `users`.
        """
        self.make_home()
        with hold_lock(self.home / USERS, fcntl.LOCK_SH) as users, ServiceUsers(self.home).register(what):
            try:
                self.start(stay=stay, mlflow=mlflow)
                yield
            finally:
                fcntl.flock(users, fcntl.LOCK_UN)
                self._release(users.fileno())

    def users(self) -> list[str]:
        """Return what the servers are being used for, one text for each command."""
        return ServiceUsers(self.home).names() if self.home.is_dir() else []

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
            TemporaryFailure: if one does not start, the hint has the path of its log; or if another process listens on its port.
        """
        state = self._record.read()
        s3, mlflow = state["s3"], state["mlflow"]
        if s3 is None or mlflow is None:
            raise TemporaryFailure("the embedded servers are not running", hint="start them: celebdit ui")
        token = mlflow_token(mlflow)
        storage = self.wait_for_storage(on_wait=on_wait)
        self._await("mlflow", mlflow, f"{mlflow.url}/health", {"Authorization": f"Bearer {token}"}, on_wait)
        environment = {**storage, **client_environment(s3.url, s3_secret(s3), mlflow.url, token)}
        return Endpoints(s3_url=s3.url, mlflow_url=mlflow.url, environment=environment)

    def wait_for_storage(self, *, on_wait: Callable[[str], None] = lambda name: None) -> dict[str, str]:
        """Wait until the S3 server answers and return the variables with which a process reaches it.

        Raises:
            TemporaryFailure: as `wait`.
        """
        s3 = self._record.read()["s3"]
        if s3 is None:
            raise TemporaryFailure("the embedded S3 server is not running", hint="start it: celebdit ui")
        self._await("s3", s3, s3.url, {}, on_wait)
        return {**storage_environment(s3.url, s3_secret(s3)), STORE_DISK: str(self.home / "s3")}

    def stop(self) -> list[str]:
        """Stop the servers and return the names of those that were running."""
        if not self.home.is_dir():
            return []
        with hold_lock(self.home / LOCK):
            running = {name: server for name, server in self._record.read().items() if server is not None}
            # While a server runs it is in the record, and the watchdog lives: a second Ctrl-C in here leaves the rest to it.
            for name in ("mlflow", "s3"):
                if name in running:
                    running[name].stop()
            self._record.remove()
            if WATCHDOG in running and running[WATCHDOG].pid != os.getpid():
                running[WATCHDOG].stop()
        return sorted(set(running) - {WATCHDOG})

    def running_servers(self) -> dict[str, Server]:
        """Return the running servers by name."""
        return {name: server for name, server in self._record.read().items() if server is not None and name != WATCHDOG}

    def watch(self) -> None:
        """Stop the servers if the last user was killed before it could; returns once they are stopped or started to stay."""
        with hold_lock(self.home / LOCK):
            pass  # the command that started this has started the servers, or was killed
        while self.running_servers() and not self.stays():
            time.sleep(_WATCH_EVERY_S)
            with (self.home / USERS).open("a") as users:
                self._release(users.fileno())

    def stays(self) -> bool:
        """Return whether the servers keep running after the command that started them."""
        return self._record.stays()

    def make_home(self) -> None:
        """Make the state folder with what the servers need in it.

        Raises:
            BadInput: if it cannot be written or made private.
        """
        make_home(self.home)
        require_writable(self.home, advice=_OTHER_HOME, room_bytes=_ROOM_BYTES, room_files=RUN_FILES)
        try:
            for folder in (self.home / "s3" / BUCKET, self.home / "s3" / MLFLOW_BUCKET, self.home / "logs"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"{self.home} cannot be written: {error.strerror}", hint=_OTHER_HOME) from error

    def _spawn(
        self, name: str, command: list[str], environment: dict[str, str], write: Callable[..., None], listening: socket | None = None
    ) -> Server:
        """Start a server that `write` has put into the record: a signal may end this process before it knows the server's id."""
        mark = uuid.uuid4().hex
        url = f"http://127.0.0.1:{0 if listening is None else listening.getsockname()[1]}"
        write(starting={name: {"url": url, "mark": mark}})
        with self._log(name).open("ab") as log:
            pid = start_detached(command, {**environment, SERVER_MARK: mark}, self.home, log, listening)
        return Server(url=url, pid=pid, mark=mark, started=start_ticks(pid))

    def _await(self, name: str, server: Server, url: str, headers: dict[str, str], on_wait: Callable[[str], None]) -> None:
        deadline_s = time.monotonic() + _READY_S
        while not server.listens() or (http_status(url, headers=headers) or 500) >= 500:  # S3 answers an unsigned request with 403
            if server.process() is None:
                raise TemporaryFailure(
                    f"the {name} server stopped while it was starting: {_last_line(self._log(name))}",
                    hint=f"see its log: {self._log(name)}",
                )
            if not server.listens():
                raise TemporaryFailure(
                    f"what listens at {server.url} is not the {name} server of {self.home}",
                    hint="stop the servers, and start them again: celebdit services down; celebdit ui",
                )
            if time.monotonic() > deadline_s:
                raise TemporaryFailure(f"the {name} server did not answer within {_READY_S:.0f} s", hint=f"see its log: {self._log(name)}")
            on_wait(name)
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "its log is empty"


if __name__ == "__main__":
    Services(Path(sys.argv[1])).watch()
