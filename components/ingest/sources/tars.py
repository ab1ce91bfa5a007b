"""Images in a tar archive, compressed or not, read once from front to back.

Promises: an entry is never a path and never on disk; the archive is read by a process of its own (`tar_reader.py`) with limited memory and
without credentials, which is ended if it makes no progress; a truncated archive is refused completely.
"""

from pathlib import Path

from components.ingest.limits import Budget
from components.ingest.sources.reader_process import EntrySource, Reader, check_not_killed, open_reader
from components.ingest.wire import read_head

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
_MEMORY_BYTES = 256 * 2**20
_COPIES = 3
"""How often the bytes of one image may be in the reader's memory."""
_PATIENCE_S = 60.0
_FIRST_ENTRY = Budget(max_image_bytes=0, max_total_bytes=2**30, max_entries=1, max_ratio=1e6)


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, by its name or by its first header.

    Raises:
        TemporaryFailure: if the process that looks is killed.
    """
    if path.name.lower().endswith(TAR_SUFFIXES):
        return True
    with open_reader(path, _FIRST_ENTRY, _reader(_FIRST_ENTRY)) as (frames, process):
        try:
            head = read_head(frames)
        except (OSError, ValueError):
            head = None
        if head is None:
            check_not_killed(process, str(path))
    return head is not None and head.get("outcome", "end") == "end"


def is_compressed(head: bytes) -> bool:
    """Return whether a file that begins with `head` is compressed as a tar may be."""
    return head.startswith(_COMPRESSED)


class TarSource(EntrySource):
    """The entries of a tar archive, compressed or not."""

    def reader(self, budget: Budget) -> Reader:
        return _reader(budget)


def _reader(budget: Budget) -> Reader:
    return Reader("components.ingest.sources.tar_reader", _MEMORY_BYTES + _COPIES * budget.max_image_bytes, _PATIENCE_S)
