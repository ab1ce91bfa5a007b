"""The runs of this machine, read from their folders below the home folder: state, score, version, and where to look.

Promises: starts no server and changes nothing; a folder that is incomplete or damaged is listed as far as it can be read.
"""

import fcntl
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from components.runtime.events import EventReader
from pipeline.local import EVENTS_FILE, LocalOutcome
from pipeline.open_runs import MARK_FILE, read_end

_RUN_ID = re.compile(r"(?P<preset>.+)-\d{8}-\d{6}-[0-9a-f]+")


@dataclass(frozen=True)
class LocalRunState:
    """One run of this machine."""

    run_id: str
    preset: str
    state: str
    """running, registered, gate failed, evaluated (a sweep's trial), failed, interrupted (its command was asked to stop) or killed (its
    command could not close it)."""
    created_at: str | None
    score: str | None
    version: str | None
    why: str | None
    """The error of a run that failed."""
    mlflow: str | None
    folder: str
    seconds: dict[str, float]

    @property
    def facts(self) -> dict[str, Any]:
        return asdict(self)


def local_runs(home: Path, *, limit: int) -> list[LocalRunState]:
    """Return the newest runs of `home`, newest first."""
    newest = sorted(_folders(home), key=lambda folder: _began_s(folder) or 0.0, reverse=True)
    runs = (run for folder in newest if (run := read_run(folder)) is not None)
    return list(islice(runs, limit))


def _folders(home: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (folder for folder in (home / "runs").iterdir() if folder.is_dir())


def _began_s(folder: Path) -> float | None:
    """Return the time of the first event of the run in `folder`; the others, which are many, are not read."""
    with suppress(OSError, ValueError, KeyError):
        event = EventReader(folder / EVENTS_FILE).first()
        return None if event is None else event.at_s
    return None


def read_run(folder: Path) -> LocalRunState | None:
    """Return the run in `folder`, or None if it is none of the whole pipeline."""
    outcome, began_s = LocalOutcome(), None
    with suppress(OSError, ValueError, KeyError):
        for event in EventReader(folder / EVENTS_FILE).read():
            began_s = event.at_s if began_s is None else began_s
            outcome.add(event)
    match = _RUN_ID.fullmatch(folder.name)
    if match is None or not (folder / EVENTS_FILE).exists():
        return None
    results, end = outcome.results, read_end(folder)
    why = end[1] if end is not None else outcome.failure.message if outcome.failure is not None else None
    return LocalRunState(
        run_id=folder.name,
        preset=match["preset"],
        state=_state(folder, outcome),
        created_at=None if began_s is None else datetime.fromtimestamp(began_s, UTC).isoformat(timespec="seconds"),
        score=_score(results.get("evaluate", {})),
        version=_version(results.get("register", {})),
        why=why,
        mlflow=results.get("preflight", {}).get("run_url"),
        folder=str(folder),
        seconds=outcome.seconds,
    )


def _state(folder: Path, outcome: LocalOutcome) -> str:
    mark, end = folder / MARK_FILE, read_end(folder)
    if mark.exists() and _is_locked(mark):
        return "running"
    if end is not None:
        return end[0]
    if mark.exists():
        return "killed"
    return "failed" if outcome.failure is not None else _end_of(outcome)


def _end_of(outcome: LocalOutcome) -> str:
    """Return how a run has ended in which no step failed."""
    if "register" in outcome.results:
        return "registered"
    if outcome.results.get("gate", {}).get("decision") == "fail":
        return "gate failed"
    return "evaluated" if outcome.closed and "evaluate" in outcome.results else "interrupted"


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _score(report: Any) -> str | None:
    with suppress(KeyError, TypeError, ValueError):
        return f"{report['headline']} = {float(report['metrics'][report['headline']]):.3f}"
    return None


def _version(version: Any) -> str | None:
    with suppress(KeyError, TypeError):
        return f"{version['name']} version {version['version']}"
    return None
