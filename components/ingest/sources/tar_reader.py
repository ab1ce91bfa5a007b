"""Process that reads a tar archive from front to back with little memory and without credentials.

    python -m components.ingest.sources.tar_reader ARCHIVE '{"max_total_bytes": ..., ...}' MAX_MEMORY_BYTES

ARCHIVE is the number of an open file; standard output gets a frame (`../wire.py`) per entry: its name, and its bytes or the verdict on it,
or nothing for a folder; the last one says how it ended. `tars.py` starts it.

Promises: the decompressed size is bounded; headers that claim gigabytes are refused; an archive that ends early is refused, because nothing
in it shows what is missing; nothing but the open file is read (`system/confinement.py`).
"""

import bz2
import gzip
import json
import lzma
import os
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from components.errors import shorten
from components.ingest.candidates import Names, refused_by_content, refused_by_name
from components.ingest.image_formats import HEAD_BYTES
from components.ingest.limits import Budget
from components.ingest.sources.reader_process import Outcome
from components.ingest.verdicts import Rejected
from components.ingest.wire import write_frame
from components.system.confinement import confine, limit_memory
from components.system.process import die_with_parent

_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError, RecursionError)
_RATIO_FROM_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 2**20
_BEAT_S = 1.0
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def main() -> None:
    """Read the archive that the command line names."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    raw = os.fdopen(int(sys.argv[1]), "rb")
    budget = Budget(**json.loads(sys.argv[2]))
    limit_memory(int(sys.argv[3]))
    confine()
    outcome, text = _send_entries(raw, budget, answers)
    write_frame(answers, {"outcome": outcome, "text": text}, [])


def _send_entries(raw: IO[bytes], budget: Budget, answers: IO[bytes]) -> tuple[Outcome, str]:
    def send(name: str | None, refused: Rejected | None = None, data: bytes = b"") -> None:
        verdict = None if refused is None else [refused.code, refused.detail]
        write_frame(answers, {"name": name, "refused": verdict}, [data])

    try:
        for number, (name, refused, data) in enumerate(_entries(raw, budget, beat=lambda: send(None)), start=1):
            if number > budget.max_entries:
                return "entries", ""
            send(name, refused, data)
    except _Refused as error:
        return error.outcome, str(error)
    except RecursionError:
        return "corrupt", "its headers describe each other without end"
    except _DAMAGED as error:
        return "corrupt", shorten(str(error), max_characters=500)
    except MemoryError:
        return "memory", ""
    return "end", ""


def _entries(raw: IO[bytes], budget: Budget, *, beat: Callable[[], None]) -> Iterator[tuple[str | None, Rejected | None, bytes]]:
    """Yield the name of each entry with the verdict on it or its bytes; a folder has no name. `beat` is called while that takes long."""
    names = Names()
    with _decompress(raw) as unpacked:
        metered = _BudgetedStream(unpacked, raw, budget, beat)
        with tarfile.open(fileobj=cast(IO[bytes], metered), mode="r|", tarinfo=_StrictTarInfo) as archive:
            for entry in archive:
                # Python 3.11 keeps every header that it read, even of a stream, and the global ones as long as the archive is open.
                archive.members = []  # type: ignore[attr-defined]
                if entry.isdir():
                    yield None, None, b""
                    continue
                refused = _refusal(entry, seen=names.is_repeated(entry.name))
                file = archive.extractfile(entry) if refused is None else None
                data = b"" if file is None else file.read(HEAD_BYTES)
                if file is not None and (refused := refused_by_content(entry.name, data)) is None:
                    data += file.read(max(budget.max_image_bytes + 1 - len(data), 0))
                yield entry.name, refused, b"" if refused else data


def _refusal(entry: tarfile.TarInfo, *, seen: bool) -> Rejected | None:
    if entry.issym() or entry.islnk():
        return Rejected("link", f"a {'symbolic' if entry.issym() else 'hard'} link")
    if not entry.isreg() or entry.issparse():
        return Rejected("special_file", "a device, pipe or sparse file")
    by_name = refused_by_name(entry.name)
    if by_name is None and seen:
        return Rejected("duplicate_name", "the archive has an entry of this name already")
    return by_name


class _Refused(Exception):
    """Not an error of `tarfile`, which would treat that as the end of the archive."""

    def __init__(self, outcome: Outcome, text: str = "") -> None:
        super().__init__(text)
        self.outcome = outcome


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses what `tarfile` accepts silently: headers that claim gigabytes or less than nothing, and a truncated archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise _Refused("corrupt", "it ends early") from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise _Refused("corrupt", f"a header is broken ({error})") from error

    def _proc_member(self, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        long_header = self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if self.size < 0 or (long_header and self.size > _MAX_HEADER_BYTES):
            raise _Refused("corrupt", f"a header claims {self.size} bytes")
        entry = cast(tarfile.TarInfo, super()._proc_member(tarfile_))  # type: ignore[misc]
        if entry.size < 0:  # by an extended header
            raise _Refused("corrupt", f"a header claims {entry.size} bytes")
        return entry


class _BudgetedStream:
    """A stream that raises beyond the budget."""

    def __init__(self, stream: IO[bytes], raw: IO[bytes], budget: Budget, beat: Callable[[], None]) -> None:
        self._stream = stream
        self._raw = raw
        self._budget = budget
        self._beat = beat
        self._beat_at_s = time.monotonic()
        self._read_bytes = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._read_bytes += len(data)
        if self._read_bytes > self._budget.max_total_bytes:
            raise _Refused("bytes")
        if self._read_bytes > _RATIO_FROM_BYTES and self._read_bytes > self._budget.max_ratio * self._raw.tell():
            raise _Refused("ratio")
        if (now_s := time.monotonic()) - self._beat_at_s > _BEAT_S:
            self._beat_at_s = now_s
            self._beat()
        return data


def _decompress(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(6)
    raw.seek(0)
    openers: dict[bytes, Any] = _COMPRESSED
    for magic, opened in openers.items():
        if start.startswith(magic):
            return cast(IO[bytes], opened(raw))
    return raw


if __name__ == "__main__":
    main()
