"""Progress events of a step: started, progress, note, result, failed, finished.

Promises: with an events file each event is one JSON line, appended in one write, so that several processes can share the file and a reader
sees complete lines, without those of which a full disk kept half; without one, the same events are log lines on stderr.
`pipeline/view.py` draws them on a terminal.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["started", "progress", "note", "result", "failed", "finished"]
LOGGER = "celebdit"
"""The logger of events that have no file, with a child for each step."""
_BEGINNING = b'{"step": "'
TRAINING = "run_key"
"""Fact of the note with which a training begins: its run key."""
STOPPED = "stopped"
"""Fact of the event `failed` of a step that was asked to stop: true."""
LEVELS: Mapping[Kind, int] = {
    "started": logging.INFO,
    "progress": logging.INFO,
    "note": logging.INFO,
    "result": logging.DEBUG,
    "failed": logging.ERROR,
    "finished": logging.INFO,
}


@dataclass(frozen=True)
class Event:
    """One event of a step."""

    step: str
    kind: Kind
    at_s: float
    facts: Mapping[str, Any]


def was_stopped(event: Event) -> bool:
    """Return whether a step ended because it was asked to stop, which is no failure for the person who asked."""
    return event.kind == "failed" and event.facts.get(STOPPED) is True


class Events:
    """Writes the events of one step. Progress is reduced to a few events per second."""

    def __init__(
        self,
        step: str,
        path: Path | None,
        *,
        redact: Callable[[str], str] = lambda text: text,
        clock: Callable[[], float] = time.time,
        listener: Callable[[Event], None] | None = None,
    ) -> None:
        """`listener` gets every event, after it was written and with the secrets in it masked."""
        self.step = step
        self._path = path
        self._redact = redact
        self._clock = clock
        self._listener = listener
        self._progress_s = 0.0
        self._progress: tuple[int, int | None, str] | None = None
        self._log = logging.getLogger(LOGGER if step == LOGGER else f"{LOGGER}.{step}")

    def emit(self, kind: Kind, **facts: Any) -> None:
        """Write one event."""
        line = self._redact(json.dumps({"step": self.step, "kind": kind, "at_s": self._clock(), "facts": facts}, default=str))
        if self._path is None:
            self._log.log(LEVELS[kind], "%s", _text(kind, json.loads(line)["facts"]))
        else:
            if kind != "progress":
                self._log.debug("%s", _text(kind, json.loads(line)["facts"]))
            self._append(self._path, line)
        if self._listener is not None:
            self._listener(Event(**json.loads(line)))

    def note(self, text: str) -> None:
        """Write a line worth reading."""
        self.emit("note", text=text)

    def progress(self, done: int, total: int | None, text: str = "") -> None:
        """Report the progress of the step, with None for a total that is not known yet.

        Repeated lines are dropped, and most others: a terminal gets 5 a second, a log 1 in 10 s.
        """
        now, pause_s = self._clock(), 0.2 if self._path is not None else 10.0
        if (done, total, text) == self._progress or ((total is None or done < total) and 0 <= now - self._progress_s < pause_s):
            return
        self._progress_s, self._progress = now, (done, total, text)
        self.emit("progress", done=done, total=total, text=text)

    def _append(self, path: Path, line: str) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = line.encode() + b"\n"
            if os.write(handle, data) < len(data):  # the disk had room for a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(handle)


def progress_text(facts: Mapping[str, Any]) -> str:
    """Return progress as `done/total text`, or without the total while it is not known."""
    total = "" if facts["total"] is None else f"/{facts['total']}"
    return f"{facts['done']}{total} {facts['text']}"


def _text(kind: Kind, facts: Mapping[str, Any]) -> str:
    """Return an event as a line for people."""
    if kind == "progress":
        return progress_text(facts)
    if kind in ("note", "failed"):
        return str(facts.get("text") or facts.get("message"))
    return " ".join([kind, *(f"{key}={value}" for key, value in facts.items() if not isinstance(value, dict | list))])


class OnceFilter:
    """Passes each text to `write` once, however often it is repeated."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._seen:
            self._seen.add(text)
            self._write(text)


class EventReader:
    """Read the events that were appended to a file since the last look. A line still being written is left for the next look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """Return the new events, oldest first."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(lines)
        return [event for line in lines.splitlines() if (event := _event_in(line)) is not None]

    def first(self) -> Event | None:
        """Return the first event of the file without reading more than it needs; None if there is none yet."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            return next((event for line in file if line.endswith(b"\n") and (event := _event_in(line)) is not None), None)
        return None


def _event_in(line: bytes) -> Event | None:
    """Return the event of a line, also after half of another one."""
    return _parse(line) or _parse(line[line.rfind(_BEGINNING) :])


def _parse(line: bytes) -> Event | None:
    """Return the event of a line; None for a line of which a full disk or a killed writer left half, alone or before another event."""
    with suppress(ValueError, KeyError, TypeError):
        raw = json.loads(line)
        return Event(step=raw["step"], kind=raw["kind"], at_s=raw["at_s"], facts=raw["facts"])
    return None
