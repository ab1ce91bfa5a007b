"""What a training run says goes to a local journal first, and from there to MLflow in the background.

Promises: telling the journal never waits for a network; after `deliver` has returned, or any later replay of the same entries, each
(key, step) is in MLflow exactly once, also when a killed attempt had sent part of it; an entry keeps the time at which it happened.
If MLflow is away, delivery is tried again with growing pauses and the run goes on. A journal has one writer: the run's lock sees to that.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from components.tracking.metric_points import Point, unseen

JOURNAL_FILE = "journal.jsonl"
MARK_FILE = "journal.delivered"
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Picture:
    """One image to show."""

    key: str
    step: int
    file: str
    timestamp_ms: int


@dataclass(frozen=True)
class Attachment:
    """One file to keep beside the run."""

    artifact: str
    file: str


Entry = Point | Picture | Attachment


class Destination(Protocol):
    """Where entries end up. Methods raise while it cannot be reached."""

    def seen(self, key: str) -> set[int]:
        """Return the steps at which metric `key` is already there."""

    def send(self, points: list[Point]) -> None:
        """Deliver metric points."""

    def show(self, picture: Picture, pixels: np.ndarray) -> None:
        """Deliver an image, unless its key is already there at its step."""

    def attach(self, attachment: Attachment, path: Path) -> None:
        """Deliver a file; the same one again changes nothing."""


class Journal:
    """An append-only file of metric points and pictures, with a mark of how much of it was delivered."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / JOURNAL_FILE
        self._torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        self._mark = folder / MARK_FILE
        self._lock = threading.Lock()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note one value per key."""
        now_ms = int(time.time() * 1000)
        self._append([{"metric": key, "step": step, "value": value, "at_ms": now_ms} for key, value in values.items()])

    def picture(self, step: int, key: str, pixels: np.ndarray) -> None:
        """Note an image (uint8, h x w x 3)."""
        name = f"{_file_name(key)}-{step:09d}.png"
        Image.fromarray(pixels).save(self._folder / name)
        self._append([{"picture": key, "step": step, "file": name, "at_ms": int(time.time() * 1000)}])

    def file(self, artifact: str, write: Callable[[Path], None]) -> None:
        """Note a file that `write` writes; it becomes the run's artifact at the path `artifact`."""
        name = _file_name(artifact)
        write(self._folder / name)
        self._append([{"artifact": artifact, "file": name}])

    def _append(self, entries: Iterable[Mapping[str, object]]) -> None:
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        with self._lock, self._path.open("a") as file:
            # A writer that was killed in the middle of a line must not spoil the next one.
            file.write("\n" + lines if self._torn else lines)
            self._torn = False

    def written(self, start: int) -> bytes:
        """Return the whole lines from byte `start` on."""
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(start)
            data = file.read()
        return data[: data.rfind(b"\n") + 1]

    @property
    def mark(self) -> int:
        """How many bytes of the journal have been delivered."""
        return int(self._mark.read_text()) if self._mark.exists() else 0

    @property
    def folder(self) -> Path:
        """Where the journal and its files lie."""
        return self._folder

    def pending(self) -> tuple[list[Entry], int]:
        """Return the entries after the mark, and where the mark will be once they are delivered."""
        start = self.mark
        lines = self.written(start)
        return decode_lines(lines), start + len(lines)

    def delivered(self, mark: int) -> None:
        """Move the mark."""
        partial = self._mark.with_suffix(".partial")
        partial.write_text(str(mark))
        partial.replace(self._mark)

    def deliver(self, destination: Destination) -> bool:
        """Send all that is pending and return whether there was anything. If the destination raises, nothing is lost."""
        entries, mark = self.pending()
        if not entries:
            return False
        deliver_entries(entries, self._folder, destination)
        self.delivered(mark)
        return True


def deliver_entries(entries: Sequence[Entry], folder: Path, destination: Destination) -> None:
    """Send `entries`, whose files lie in `folder`; what is there already is not sent again."""
    points = [entry for entry in entries if isinstance(entry, Point)]
    fresh = unseen(points, {key: destination.seen(key) for key in {point.key for point in points}})
    if fresh:
        destination.send(fresh)
    for entry in entries:
        if isinstance(entry, Picture):
            destination.show(entry, np.asarray(Image.open(folder / entry.file)))
        elif isinstance(entry, Attachment):
            destination.attach(entry, folder / entry.file)


def decode_lines(lines: bytes) -> list[Entry]:
    """Return the entries of whole lines; a line that a killed writer left torn is skipped."""
    entries = []
    for line in lines.splitlines():
        try:
            entries.append(_entry(json.loads(line)))
        except (ValueError, KeyError):
            continue
    return entries


class Delivery:
    """A background thread that keeps a journal delivered."""

    def __init__(
        self, journal: Journal, connect: Callable[[], Destination], *, on_trouble: Callable[[Exception], None], every_s: float = 2.0
    ) -> None:
        self._journal = journal
        self._connect = connect
        self._on_trouble = on_trouble
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal-delivery", daemon=True)
        self._destination: Destination | None = None
        self._troubled = False
        self._arrived = False
        self._thread.start()

    def _run(self) -> None:
        pause_s = self._every_s
        while not self._stop.wait(pause_s):
            pause_s = self._every_s if self._try() else min(pause_s * 2, _LONGEST_PAUSE_S)
        self._arrived = self._try()

    def _try(self) -> bool:
        try:
            if self._destination is None:
                self._destination = self._connect()
            self._journal.deliver(self._destination)
        except Exception as error:  # whatever MLflow's client raises: training must go on, and the entries stay in the journal
            if not self._troubled:
                self._on_trouble(error)
            self._troubled = True
            return False
        self._troubled = False
        return True

    def close(self, *, within_s: float) -> bool:
        """Have what is left delivered and the thread end; return whether everything has arrived within `within_s` seconds.

        What has not arrived stays in the journal. A request that hangs is left to the thread, which ends with the process.
        """
        self._stop.set()
        self._thread.join(within_s)
        return self._arrived


def _file_name(key: str) -> str:
    """Return `key` as a plain name, fit for a folder and for an object key."""
    return key.replace("/", ".")


def _entry(raw: Mapping[str, object]) -> Entry:
    if "artifact" in raw:
        return Attachment(str(raw["artifact"]), str(raw["file"]))
    step, at_ms = int(str(raw["step"])), int(str(raw["at_ms"]))
    if "metric" in raw:
        return Point(str(raw["metric"]), step, float(str(raw["value"])), at_ms)
    return Picture(str(raw["picture"]), step, str(raw["file"]), at_ms)
