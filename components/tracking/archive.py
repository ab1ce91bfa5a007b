"""Archive of metrics that MLflow has not received, in object storage: the machine may be gone before MLflow is back.

Layout: `<attempt>/<first byte>.jsonl` and `<attempt>/files/<name>` (see `stores/layout.py`). Promises: saved entries can be
replayed from any machine, any number of times, and are logged once; logged entries are deleted, or stay where nothing may be deleted.
Nothing is written while MLflow keeps up.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import CelebditError
from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.tracking.journal import Attachment, Destination, Journal, LoggedImage, decode_lines, deliver_entries

_FILES = "files"
_log = logging.getLogger(__name__)


class JournalArchive:
    """The entries of one run that MLflow has not received, below `home`."""

    def __init__(self, store: ObjectStore, home: StoreUri, attempt: str) -> None:
        self._store = store
        self._home = home
        self._own = self._home / attempt
        self._saved_to = 0

    def save(self, journal: Journal) -> bool:
        """Store the entries since the last save that are not uploaded; return whether there were any."""
        start = max(journal.mark, self._saved_to)
        lines = journal.read_from(start)
        if not lines:
            return False
        for entry in decode_lines(lines):
            if isinstance(entry, LoggedImage | Attachment):
                self._store.put_file(self._own / _FILES / entry.file, journal.folder / entry.file)
        self._store.put_bytes(self._own / f"{start:012d}.jsonl", lines)
        self._saved_to = start + len(lines)
        return True

    def discard(self) -> None:
        """Delete what this attempt saved, after MLflow has received everything."""
        if self._saved_to:
            with _tidying_up():
                for item in self._store.list(self._own):
                    self._store.delete(item.uri)

    def replay(self, destination: Destination) -> int:
        """Upload the entries of all attempts, delete them, and return their number."""
        count = 0
        segments = [item.uri for item in self._store.list(self._home) if item.uri.name.endswith(".jsonl")]
        for segment in sorted(segments, key=lambda uri: uri.key):
            count += self._replay(segment, destination)
        return count

    def _replay(self, segment: StoreUri, destination: Destination) -> int:
        entries = decode_lines(self._store.get_bytes(segment))
        folder = StoreUri(segment.bucket, segment.key.rsplit("/", 1)[0]) / _FILES
        with tempfile.TemporaryDirectory(prefix="celebdit-journal-") as local:
            files = {entry.file for entry in entries if isinstance(entry, LoggedImage | Attachment)}
            for name in files:
                with suppress(ObjectMissing):  # the entries after it matter more
                    self._store.get_file(folder / name, Path(local) / name)
            deliver_entries(entries, Path(local), destination)
        with _tidying_up():
            for uri in (segment, *(folder / name for name in files)):
                self._store.delete(uri)
        return len(entries)


@contextmanager
def _tidying_up() -> Iterator[None]:
    """Delete what MLflow has; what cannot be deleted is replayed again, which logs nothing twice."""
    try:
        yield
    except CelebditError as error:
        _log.warning("entries that MLflow has received stay in object storage: %s", error)
