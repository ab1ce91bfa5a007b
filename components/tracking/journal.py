"""Local journal of a training: metrics, images and files are written here first and uploaded to MLflow later.

Promises: writing to the journal never waits for a network; after `deliver` has returned, or after any later replay of the same entries,
each (key, step) is in MLflow exactly once, even if a killed attempt had uploaded part of them; an entry keeps the time at which it was
written. A journal has one writer, which the run's lock ensures. The background upload is in `delivery.py`.
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
RECEIVER_FILE = "receiver"
MARK_FILE = "journal.delivered"
_log = logging.getLogger(__name__)


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

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> bool | None:
        """Upload an image, unless its key has one at its step: then return False."""

    def log_file(self, attachment: Attachment, path: Path) -> bool | None:
        """Upload a file, unless there is one of its name: then return False."""


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

    def set_receiver(self, run_id: str) -> None:
        """Record which MLflow run the journal is uploaded to; what was uploaded to another, which is gone, is pending again."""
        receiver = self._folder / RECEIVER_FILE
        if receiver.exists() and receiver.read_text() == run_id:
            return
        self.set_mark(0)
        partial = receiver.with_suffix(".partial")
        partial.write_text(run_id)
        partial.replace(receiver)

    def deliver_again(self, destination: Destination) -> int:
        """Upload every entry that the destination lacks, whatever was uploaded before, and return their number."""
        self.set_mark(0)
        entries, mark = self.pending_entries()
        count = deliver_entries(entries, self._folder, destination)
        self.set_mark(mark)
        return count

    def deliver(self, destination: Destination) -> bool:
        """Upload all pending entries and return whether there were any. If the destination raises, nothing is lost."""
        entries, mark = self.pending_entries()
        if not entries:
            return False
        deliver_entries(entries, self._folder, destination)
        self.set_mark(mark)
        return True


def deliver_entries(entries: Sequence[Entry], folder: Path, destination: Destination) -> int:
    """Upload `entries`, whose files are in `folder`, without those that the destination already has; return how many were uploaded."""
    points = [entry for entry in entries if isinstance(entry, Point)]
    missing = missing_points(points, {key: destination.logged_steps(key) for key in {point.key for point in points}})
    if missing:
        destination.log_metrics(missing)
    count = len(missing)
    for entry in entries:
        if isinstance(entry, LoggedImage) and (pixels := _read_image(folder / entry.file)) is not None:
            count += destination.log_image(entry, pixels) is not False
        elif isinstance(entry, Attachment) and (folder / entry.file).exists():
            count += destination.log_file(entry, folder / entry.file) is not False
    return count


def _read_image(path: Path) -> np.ndarray | None:
    """Return the image in `path`, or None if it is damaged or lost: then the entries after it matter more."""
    try:
        return np.asarray(Image.open(path, formats=("PNG",)))
    except (OSError, ValueError, SyntaxError) as error:
        _log.warning("%s cannot be uploaded to MLflow: %s", path, first_line(error))
        return None


def decode_lines(lines: bytes) -> list[Entry]:
    """Return the entries of complete lines; a line that a killed writer left incomplete is skipped."""
    entries = []
    for line in lines.splitlines():
        try:
            entries.append(_decode_entry(json.loads(line)))
        except (ValueError, KeyError):
            continue
    return entries


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
