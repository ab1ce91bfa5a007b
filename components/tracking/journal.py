"""Local journal of a training: metrics, images and files are written here first and uploaded to MLflow in the background.

Promises: writing to the journal never waits for a network; after `deliver` has returned, or after any later replay of the same entries,
each (key, step) is in MLflow exactly once, even if a killed attempt had uploaded part of them; an entry keeps the time at which it was
written. While MLflow is unavailable, uploads are retried with growing pauses and the training continues. A journal has one writer, which
the run's lock ensures.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from components.errors import first_line
from components.tracking.metric_points import Point, missing_points

JOURNAL_FILE = "journal.jsonl"
MARK_FILE = "journal.delivered"
_log = logging.getLogger(__name__)
_MAX_PAUSE_S = 30.0


@dataclass(frozen=True)
class LoggedImage:
    """An image at one step; `file` is its name in the journal's folder."""

    key: str
    step: int
    file: str
    timestamp_ms: int


@dataclass(frozen=True)
class Attachment:
    """A file that becomes the run's artifact at the path `artifact`; `file` is its name in the journal's folder."""

    artifact: str
    file: str


Entry = Point | LoggedImage | Attachment


class Destination(Protocol):
    """Where entries are uploaded to. Methods raise while it cannot be reached."""

    def logged_steps(self, key: str) -> set[int]:
        """Return the steps at which metric `key` has a value."""

    def log_metrics(self, points: list[Point]) -> None:
        """Upload metric points."""

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> None:
        """Upload an image, unless its key has one at its step."""

    def log_file(self, attachment: Attachment, path: Path) -> None:
        """Upload a file; repeating it changes nothing."""


class Journal:
    """An append-only file of metric points, images and files, with a mark of how much of it was uploaded."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / JOURNAL_FILE
        self._ends_torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        self._mark = folder / MARK_FILE
        self._lock = threading.Lock()

    def add_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one value per key."""
        now_ms = int(time.time() * 1000)
        self._append([{"metric": key, "step": step, "value": value, "at_ms": now_ms} for key, value in values.items()])

    def add_image(self, step: int, key: str, pixels: np.ndarray) -> None:
        """Append an image (uint8, h x w x 3)."""
        name = f"{_file_name(key)}-{step:09d}.png"
        Image.fromarray(pixels).save(self._folder / name)
        self._append([{"picture": key, "step": step, "file": name, "at_ms": int(time.time() * 1000)}])

    def add_file(self, artifact: str, write: Callable[[Path], None]) -> None:
        """Append a file that `write` writes; it becomes the run's artifact at the path `artifact`."""
        name = _file_name(artifact)
        write(self._folder / name)
        self._append([{"artifact": artifact, "file": name}])

    def _append(self, entries: Iterable[Mapping[str, object]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        with self._lock, self._path.open("a") as file:
            # A line that a killed writer left incomplete must not corrupt the next one.
            file.write("\n" + lines if self._ends_torn else lines)
            self._ends_torn = False

    def read_from(self, start: int) -> bytes:
        """Return the complete lines from byte `start` on."""
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(start)
            data = file.read()
        return data[: data.rfind(b"\n") + 1]

    @property
    def mark(self) -> int:
        """How many bytes of the journal have been uploaded; 0 if its file is damaged: uploading again changes nothing."""
        try:
            mark = int(self._mark.read_text())
            return mark if 0 <= mark <= self._path.stat().st_size else 0
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def folder(self) -> Path:
        """The folder of the journal and its files."""
        return self._folder

    def pending_entries(self) -> tuple[list[Entry], int]:
        """Return the entries after the mark, and the mark to set once they are uploaded."""
        start = self.mark
        lines = self.read_from(start)
        return decode_lines(lines), start + len(lines)

    def set_mark(self, mark: int) -> None:
        """Record that the first `mark` bytes have been uploaded."""
        partial = self._mark.with_suffix(".partial")
        partial.write_text(str(mark))
        partial.replace(self._mark)

    def deliver(self, destination: Destination) -> bool:
        """Upload all pending entries and return whether there were any. If the destination raises, nothing is lost."""
        entries, mark = self.pending_entries()
        if not entries:
            return False
        deliver_entries(entries, self._folder, destination)
        self.set_mark(mark)
        return True


def deliver_entries(entries: Sequence[Entry], folder: Path, destination: Destination) -> None:
    """Upload `entries`, whose files are in `folder`, without those that the destination already has."""
    points = [entry for entry in entries if isinstance(entry, Point)]
    missing = missing_points(points, {key: destination.logged_steps(key) for key in {point.key for point in points}})
    if missing:
        destination.log_metrics(missing)
    for entry in entries:
        if isinstance(entry, LoggedImage):
            destination.log_image(entry, np.asarray(Image.open(folder / entry.file)))
        elif isinstance(entry, Attachment):
            destination.log_file(entry, folder / entry.file)


def decode_lines(lines: bytes) -> list[Entry]:
    """Return the entries of complete lines; a line that a killed writer left incomplete is skipped."""
    entries = []
    for line in lines.splitlines():
        try:
            entries.append(_decode_entry(json.loads(line)))
        except (ValueError, KeyError):
            continue
    return entries


class Delivery:
    """A background thread that uploads a journal as it grows."""

    def __init__(
        self, journal: Journal, connect: Callable[[], Destination], *, on_outage: Callable[[Exception], None], every_s: float = 2.0
    ) -> None:
        self._journal = journal
        self._connect = connect
        self._on_outage = on_outage
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-delivery", daemon=True)
        self._destination: Destination | None = None
        self._is_out = False
        self._is_complete = False
        self._thread.start()

    def _run(self) -> None:
        pause_s, attempt = self._every_s, 0
        while not self._stop.wait(pause_s):
            error = self._try()
            attempt = 0 if error is None else attempt + 1
            pause_s = self._every_s if error is None else min(pause_s * 2, _MAX_PAUSE_S)
            if error is not None:
                text = "upload to MLflow failed, attempt %d: %s; next attempt in %.0f s, until training ends"
                _log.warning(text, attempt, first_line(error), pause_s, extra={"topic": "upload to MLflow", "is_noted": True})
        self._is_complete = self._try() is None

    def _try(self) -> Exception | None:
        try:
            if self._destination is None:
                self._destination = self._connect()
            self._journal.deliver(self._destination)
        except Exception as error:  # MLflow's client raises many types: training must continue, and the entries stay in the journal
            if not self._is_out:
                self._on_outage(error)
            self._is_out = True
            return error
        self._is_out = False
        return None

    def close(self, *, within_s: float) -> bool:
        """Upload the rest, end the thread and return whether everything was uploaded within `within_s` seconds.

        Other entries stay in the journal. A request that hangs is left to the thread, which ends with the process.
        """
        self._stop.set()
        self._thread.join(within_s)
        return self._is_complete


def _file_name(key: str) -> str:
    """Return `key` as a name without slashes, for a file and an object key."""
    return key.replace("/", ".")


def _decode_entry(raw: Mapping[str, object]) -> Entry:
    if "artifact" in raw:
        return Attachment(str(raw["artifact"]), str(raw["file"]))
    step, at_ms = int(str(raw["step"])), int(str(raw["at_ms"]))
    if "metric" in raw:
        return Point(str(raw["metric"]), step, float(str(raw["value"])), at_ms)
    return LoggedImage(str(raw["picture"]), step, str(raw["file"]), at_ms)
