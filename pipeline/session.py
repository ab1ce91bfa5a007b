"""Choose the servers of a command: those that the environment configures, or the embedded ones.

Promises: with CELEBDIT_STORE and MLFLOW_TRACKING_URI set nothing is started; with neither set both servers are embedded; one without the
other is refused, because it would split a run between this machine and another one.
"""

import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.command_settings import CommandSettings
from components.environment import GIT_COMMIT, MLFLOW, PRESET, RUN_ID, STORE, WORK_DIR
from components.errors import BadInput
from components.runtime.events import Events
from components.settings import Settings, experiment_name
from components.system.child_environment import compiler_caches
from pipeline.embedded_environment import without_servers
from pipeline.home import make_home
from pipeline.services import Endpoints, Services

if TYPE_CHECKING:
    from components.runtime.context import StepContext

_log = logging.getLogger(__name__)


@dataclass
class Session:
    """The servers of one command, and the folder of its local state."""

    home: Path
    services: Services | None
    _endpoints: Endpoints | None = None

    def environment(
        self, *, run_id: str | None = None, preset: str | None = None, on_wait: Callable[[str], None] = lambda name: None
    ) -> dict[str, str]:
        """Wait until the embedded servers answer, and return the environment for the processes of run `run_id`, or of no run."""
        inherited = dict(os.environ) if self.services is None else without_servers(os.environ)
        environment = {
            **_defaults(self.home),
            **_set({GIT_COMMIT: git_commit()}),
            **{name: value for name, value in inherited.items() if name not in (RUN_ID, PRESET)},
            **_set({RUN_ID: run_id, PRESET: preset}),
        }
        if self.services is None:
            return environment
        self._endpoints = self.services.wait(on_wait=on_wait)
        return {**environment, **self._endpoints.environment}

    def link(self, url: str) -> str:
        """Return an address in MLflow as a person can open it: on a terminal it has the token of the embedded server, elsewhere it has not.

        What is not a terminal may be a file that others read.
        """
        return url if self._endpoints is None or not sys.stderr.isatty() else self._endpoints.link(url)

    @property
    def stays(self) -> bool:
        """Whether the servers are there after the command."""
        return self.services is None or self.services.stays()

    @property
    def servers(self) -> str:
        """A name of the servers, the same for every session that uses them."""
        settings = CommandSettings.from_environment()
        return "embedded" if self.services is not None else f"{settings.store_uri} {settings.mlflow_uri}"

    def context(self, environment: Mapping[str, str] | None = None) -> "StepContext":
        """Return the clients of this session's servers for use in this process."""
        from components.runtime.context import StepContext  # noqa: PLC0415 - imports boto3

        environment = self.environment() if environment is None else environment
        make_environment(environment)
        return StepContext(settings=Settings.from_environment(environment, in_run=RUN_ID in environment), events=Events("celebdit", None))


def own_environment(home: Path) -> dict[str, str]:
    """Return the environment of a process that uses none of the servers that the environment of this process leads to."""
    return {**_defaults(home), **without_servers(os.environ)}


def _defaults(home: Path) -> dict[str, str]:
    work_dir = home.absolute() / "work"
    return {
        # We write no pickle; this keeps torch from unpickling a file from elsewhere.
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        WORK_DIR: str(work_dir),
        **compiler_caches(work_dir),  # this process samples, too
    }


def make_environment(environment: Mapping[str, str]) -> None:
    """Make `environment` that of this process, from which boto3 and MLflow read theirs."""
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


@contextmanager
def kept_environment() -> Iterator[None]:
    """Make the environment of this process what it was, after the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        make_environment(before)


@contextmanager
def open_session(home: Path, *, stay: bool = False, what: str | None = None) -> Iterator[Session]:
    """Yield the servers for the block; embedded ones are started, `Session.environment` waits for them.

    `what` is what they are used for, like `run smoke-...`.

    Raises:
        BadInput: if only one of the two endpoints is configured, or `home` cannot be made private.
    """
    settings = CommandSettings.from_environment()
    experiment_name()
    configured = () if _is_embedded(home, settings.mlflow_uri) else settings.endpoints
    if len(configured) == 1:
        present, absent = (STORE, MLFLOW) if STORE in configured else (MLFLOW, STORE)
        raise BadInput(
            f"{present} is set but {absent} is not", hint="set both to use your own servers, or neither to use the embedded ones"
        )
    if configured:
        _log.info("using the servers that %s and %s name", STORE, MLFLOW)
        try:
            make_home(home)
        except BadInput:
            if home.exists():
                raise
            # Many commands need no folder; those that do will say it.
        yield Session(home=home, services=None)
        return
    services = Services(home)
    _log.info("using the embedded servers of %s", home.absolute())
    with services.use(stay=stay, what=what):
        yield Session(home=home, services=services)


def _is_embedded(home: Path, mlflow_uri: str | None) -> bool:
    """Return whether an address is that of the embedded server of `home`: the shell got it from `celebdit services env`."""
    mlflow = Services(home).running_servers().get("mlflow") if mlflow_uri else None
    return mlflow is not None and mlflow.url == (mlflow_uri or "").rstrip("/")


def _set(variables: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables that have a value."""
    return {name: value for name, value in variables.items() if value is not None}


def new_run_id(preset: str) -> str:
    """Return a unique name for a run, which keys of objects contain: preset, time and a random suffix."""
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in Path(preset).stem.lower())[:30].strip("-") or "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


SAMPLES_FILE = "samples.png"
"""The grid of samples in the folder of a local run."""


def run_folder(home: Path, run_id: str) -> Path:
    """Return the folder of a local run, with its log and events."""
    return home.absolute() / "runs" / run_id


def git_commit() -> str | None:
    """Return the commit of the code, marked if files differ from it, or None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        # In a hook of git, or in a shell set up for another repository, these name that one instead of the folder.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
