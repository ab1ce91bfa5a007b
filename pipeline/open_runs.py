"""Runs on this machine that are not closed: marked while their command works on them, and recovered if it was killed.

Promises: a run counts as killed only if no process holds the lock on its mark, so neither a reused process id nor a wrong clock matters;
recovery ends what is left of its processes, uploads what it could not, and closes its runs in MLflow, once, by whichever command
comes next. What cannot be recovered because a server is unavailable does not fail the command; a later one recovers it.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

from components.errors import BadInput, Failure
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.runtime.events import TRAINING, EventReader, Events
from components.system.lifeline import end_processes_of
from components.system.locks import create_locked
from pipeline.container_engine import engine_address, remove_containers
from pipeline.containers import RUN_LABEL
from pipeline.local import EVENTS_FILE, LIFELINE_FILE

MARK_FILE = "open.json"
"""In the folder of a run; its holder keeps it locked."""
END_FILE = "end.json"
"""In the folder of a run whose last step did not end it: what ended it, in the word that `celebdit runs` shows, and why."""


class OpenRun:
    """The mark of a run that this process works on."""

    def __init__(self, folder: Path, *, servers: str, in_containers: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / MARK_FILE
        facts = {"pid": os.getpid(), "began_s": time.time(), "servers": servers, "in_containers": in_containers}
        self._file = create_locked(self._path, json.dumps(facts))

    def close(self) -> None:
        """Record that nothing of the run is left to do."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of the mark; unless the run is closed, the next command recovers it."""
        self._file.close()


def record_end(folder: Path, state: Literal["interrupted", "killed", "failed"], why: str | None = None) -> None:
    """Record what ended the run in `folder`, unless that is recorded already."""
    path = folder / END_FILE
    with suppress(OSError), path.open("x") as file:
        try:
            json.dump({"state": state, "why": why}, file)
            file.flush()
        except OSError:  # a full disk takes no record, and an empty one would stand in the way of the next
            path.unlink(missing_ok=True)


def read_end(folder: Path) -> tuple[str, str | None] | None:
    """Return the state that is recorded as the end of the run in `folder` and why, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        end = json.loads((folder / END_FILE).read_text())
        return str(end["state"]), None if end["why"] is None else str(end["why"])
    return None


@contextmanager
def open_run(folder: Path, *, servers: str, in_containers: bool = False) -> Iterator[OpenRun]:
    """Mark the run in `folder`, which uses the named `servers`, as open for the block."""
    run = OpenRun(folder, servers=servers, in_containers=in_containers)
    try:
        yield run
    finally:
        run.release()


def recover_killed_runs(home: Path, context: StepContext, say: Callable[[str], None], *, servers: str) -> None:
    """Recover every run of `home` whose command was killed; `context` has the `servers` of this command.

    Of a run that used other servers only the processes are ended.
    """
    for mark in sorted((home / "runs").glob(f"*/{MARK_FILE}")):
        with _lock_if_abandoned(mark) as facts:
            if facts is not None and facts.get("servers", servers) == servers:
                _recover(mark, facts, context, say)
            elif facts is not None:
                end_processes_of(mark.parent / LIFELINE_FILE)


def _recover(mark: Path, facts: dict[str, Any], context: StepContext, say: Callable[[str], None]) -> None:
    folder, run_id = mark.parent, mark.parent.name
    record_end(folder, "killed")
    try:
        ended = end_processes_of(folder / LIFELINE_FILE)
        if facts.get("in_containers"):
            with engine_address() as engine:
                ended += remove_containers(engine, f"{RUN_LABEL}={run_id}")
        of_run = StepContext(settings=replace(context.settings, run_id=run_id), events=Events("recovery", None))
        for run_key in _trainings(folder):
            _upload_rest(run_key, of_run)
        _close_in_mlflow(of_run)
    except Exception as error:  # this run may go on, and the next one tries again
        say(f"run {run_id} was killed, and cannot be recovered yet: {Failure.of(error).message}")
        return
    mark.unlink(missing_ok=True)
    processes = f", {plural(ended, 'process', 'processes')} of it ended" if ended else ""
    say(f"run {run_id} was killed before it could close{processes}; its runs in MLflow are closed now")


def _upload_rest(run_key: str, context: StepContext) -> None:
    from components.train.reporting.sync import sync  # noqa: PLC0415 - imports MLflow, which takes seconds

    with suppress(BadInput):  # killed before it had begun
        sync(run_key, context)


def _close_in_mlflow(context: StepContext) -> None:
    from components.finalize.finalize import close_killed  # noqa: PLC0415 - imports MLflow, which takes seconds

    close_killed("the command of this run was killed", context)


def _trainings(folder: Path) -> list[str]:
    """Return the keys of the trainings that the run in `folder` began."""
    return sorted({str(event.facts[TRAINING]) for event in EventReader(folder / EVENTS_FILE).read() if TRAINING in event.facts})


@contextmanager
def _lock_if_abandoned(mark: Path) -> Iterator[dict[str, Any] | None]:
    """Yield what the mark says, locked for the block, or None if its holder lives or another command recovers it."""
    try:
        file: IO[str] = mark.open("r+")
    except OSError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not mark.exists():  # recovered in this moment
            yield None
            return
        try:
            facts = json.load(file)
        except ValueError:  # the disk was full
            facts = {}
        yield facts if isinstance(facts, dict) else {}
