"""Local database of one ingest: every verdict, and the accepted bytes.

Promises: memory does not grow with the number of images; bytes that were accepted before are a duplicate, whatever their name; images are
read in the order of their digests, so that everything made from them is a function of their content. Bytes stored uncompressed in the
source's archive stay there and are verified when they are read. The ledger is temporary: it is deleted with its staging folder.
"""

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from components.errors import DataRefused
from components.ingest.candidates import printable_name
from components.ingest.colour_statistics import Triple, colour_statistics
from components.ingest.verdicts import Accepted, Extent, Rejected, Verdict
from components.manifests import Split

_THUMBNAILS_PER_CODE = 12
_PAGE = 500
_BATCH_ROWS = 256
_BATCH_BYTES = 4 * 2**20
_STORED = "SELECT sha256, extension, split, mean_r, mean_g, mean_b, std_r, std_g, std_b, in_archive, at, size_bytes FROM images"
_SCHEMA = """
CREATE TABLE seen (
    n INTEGER PRIMARY KEY, source_name TEXT, verdict TEXT, detail TEXT, accepted INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, source_format TEXT, thumbnail BLOB
);
CREATE TABLE images (
    sha256 TEXT PRIMARY KEY, n INTEGER, extension TEXT, in_archive INTEGER, at INTEGER, size_bytes INTEGER, split TEXT,
    perceptual_hash TEXT, mean_r REAL, mean_g REAL, mean_b REAL, std_r REAL, std_g REAL, std_b REAL, shard TEXT, offset INTEGER
) WITHOUT ROWID;
"""
_SEEN = "INSERT INTO seen VALUES (?,?,?,?,?,?,?,?,?,?)"
_IMAGE = f"INSERT INTO images VALUES ({','.join('?' * 14)},NULL,NULL)"  # noqa: S608 - only marks


class StoredImage(NamedTuple):
    """An accepted image in the ledger."""

    sha256: str
    extension: str
    split: Split
    mean: Triple
    std: Triple
    in_archive: bool
    at: int
    size_bytes: int

    @property
    def key(self) -> str:
        """The image's name in the dataset."""
        return self.sha256[:20]


def split_of(sha256: str, held_out: float) -> Split:
    """Return the split of an image: a function of its digest and the share, so that it does not change when images are added."""
    return "held_out" if int(sha256[:8], 16) / 2**32 < held_out else "train"


class Ledger:
    """The ledger of one pass over a source, whose images may lie in `archive`. Use as a context manager."""

    def __init__(self, folder: Path, *, held_out: float, archive: Path | None = None) -> None:
        self._held_out = held_out
        self._bytes = (folder / "accepted.bytes").open("w+b")
        self._archive = archive.open("rb") if archive is not None else None
        self._database = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None, check_same_thread=False)
        for line in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-8000"):
            self._database.execute(f"PRAGMA {line}")
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")
        self.verdicts: Counter[str] = Counter()
        """Number of rejected candidates by code, of the rows written so far; any query writes all."""
        self._end = 0
        self._seen = 0
        self._unwritten: list[tuple[str, Verdict]] = []
        self._unwritten_bytes = 0
        self._unplaced: list[tuple[str, int, str]] = []

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()
        self._bytes.close()
        if self._archive is not None:
            self._archive.close()

    @property
    def accepted(self) -> int:
        """Number of accepted images."""
        return self.value("SELECT COUNT(*) FROM images")

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rejected candidates by code; ignored files do not count."""
        counts = self.rows(
            "SELECT verdict, COUNT(*) FROM seen WHERE NOT accepted AND verdict != 'ignored' GROUP BY verdict ORDER BY verdict"
        )
        return dict(counts)

    def ignored_reasons(self, *, shown: int) -> list[tuple[str, int]]:
        """Return the most frequent reasons why files are ignored, with their numbers."""
        query = "SELECT detail, COUNT(*) FROM seen WHERE verdict = 'ignored' GROUP BY detail ORDER BY COUNT(*) DESC, detail LIMIT ?"
        return [(str(reason), int(count)) for reason, count in self.rows(query, shown)]

    def record(self, name: str, verdict: Verdict) -> None:
        """Record the verdict on one candidate, and keep the bytes if they are new."""
        self._unwritten.append((name, verdict))
        if isinstance(verdict, Accepted):
            self._unwritten_bytes += len(verdict.small) + (len(verdict.data) if isinstance(verdict.data, bytes) else 0)
        if len(self._unwritten) >= _BATCH_ROWS or self._unwritten_bytes >= _BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        """Write recorded verdicts to the database, many at a time because one by one is several times slower."""
        pending, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        digests = [verdict.sha256 for _, verdict in pending if isinstance(verdict, Accepted)]
        marks = ",".join("?" * len(digests))
        known = {sha256 for (sha256,) in self._database.execute(f"SELECT sha256 FROM images WHERE sha256 IN ({marks})", digests)}  # noqa: S608
        seen: list[tuple[Any, ...]] = []
        new: list[tuple[int, Accepted]] = []
        for n, (name, verdict) in enumerate(pending, start=self._seen + 1):
            if isinstance(verdict, Accepted) and verdict.sha256 not in known:
                known.add(verdict.sha256)
                new.append((n, verdict))
                about = (verdict.sha256, *verdict.source_px, verdict.source_format)
                seen.append((n, printable_name(name), "+".join(verdict.rules), printable_name(verdict.detail) or None, 1, *about, None))
            elif isinstance(verdict, Accepted):
                twin = f"the same bytes as an earlier image: {verdict.key}"
                seen.append(self._rejected_row(n, name, Rejected("duplicate", twin), verdict.sha256))
            else:
                seen.append(self._rejected_row(n, name, verdict, None))
        self._seen += len(pending)
        of_colours = colour_statistics([image.small for _, image in new])
        images = [(*self._store(n, image), *mean, *std) for (n, image), (mean, std) in zip(new, of_colours, strict=True)]
        self._database.executemany(_SEEN, seen)
        self._database.executemany(_IMAGE, images)

    def _rejected_row(self, n: int, name: str, rejected: Rejected, sha256: str | None) -> tuple[Any, ...]:
        self.verdicts[rejected.code] += 1
        image = rejected.thumbnail if self.verdicts[rejected.code] <= _THUMBNAILS_PER_CODE else b""
        return n, printable_name(name), rejected.code, printable_name(rejected.detail), 0, sha256, None, None, None, image or None

    def _store(self, n: int, image: Accepted) -> tuple[Any, ...]:
        """Store an image's bytes unless they are in the archive; return its row."""
        if isinstance(image.data, Extent):
            in_archive, (at, size_bytes) = True, image.data
        else:
            in_archive, at, size_bytes = False, self._end, len(image.data)
            self._bytes.write(image.data)
            self._end += size_bytes
        phash = None if image.perceptual_hash is None else f"{image.perceptual_hash:016x}"
        split = split_of(image.sha256, self._held_out)
        return image.sha256, n, image.extension, in_archive, at, size_bytes, split, phash

    def reject_accepted(self, sha256: str, rejected: Rejected) -> None:
        """Reject an image that was accepted before."""
        self._flush()
        self._database.execute(
            "UPDATE seen SET verdict=?, detail=?, accepted=0, thumbnail=? WHERE n = (SELECT n FROM images WHERE sha256=?)",
            (rejected.code, rejected.detail, rejected.thumbnail or None, sha256),
        )
        self._database.execute("DELETE FROM images WHERE sha256=?", (sha256,))

    def images(self) -> Iterator[StoredImage]:
        """Yield the accepted images in the order of their digests; the ledger may be changed during the iteration."""
        last = ""
        while page := self.rows(f"{_STORED} WHERE sha256 > ? ORDER BY sha256 LIMIT ?", last, _PAGE):
            yield from map(_stored_image, page)
            last = page[-1][0]

    def identities(self) -> Iterator[tuple[str, Split]]:
        """Yield digest and split of the accepted images in the order of their digests."""
        for page in self.pages("SELECT sha256, split FROM images ORDER BY sha256", _PAGE):
            yield from page

    def image(self, sha256: str) -> StoredImage | None:
        """Return one accepted image, or None."""
        rows = self.rows(f"{_STORED} WHERE sha256 = ?", sha256)
        return _stored_image(rows[0]) if rows else None

    def data(self, image: StoredImage) -> bytes:
        """Return the bytes of an image.

        Raises:
            DataRefused: if they changed since they were judged.
        """
        file = self._archive if image.in_archive else self._bytes
        assert file is not None, "images of an archive are recorded only with it"
        if file is self._bytes:
            file.flush()
        data = os.pread(file.fileno(), image.size_bytes, image.at)
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise DataRefused(
                f"{file.name} changed while it was ingested", hint="make sure that no other process writes to it, and run it again"
            )
        return data

    def place(self, sha256: str, shard: str, offset: int) -> None:
        """Record the shard and offset of an image."""
        self._unplaced.append((shard, offset, sha256))
        if len(self._unplaced) >= _PAGE:
            self._flush()

    def _flush(self) -> None:
        """Write everything that is still in memory to the database."""
        if self._unwritten:
            self._write()
        placed, self._unplaced = self._unplaced, []
        self._database.executemany("UPDATE images SET shard=?, offset=? WHERE sha256=?", placed)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the answer to a query on `seen` and `images`."""
        self._flush()
        with closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()

    def value(self, query: str, *values: Any) -> Any:
        """Return the single value that answers a query."""
        return self.rows(query, *values)[0][0]

    def pages(self, query: str, page: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the answer to a query in pages."""
        self._flush()
        with closing(self._database.execute(query)) as cursor:
            while rows := cursor.fetchmany(page):
                yield rows


def _stored_image(row: tuple[Any, ...]) -> StoredImage:
    sha256, extension, split, mr, mg, mb, sr, sg, sb, in_archive, at, size_bytes = row
    return StoredImage(sha256, extension, split, (mr, mg, mb), (sr, sg, sb), bool(in_archive), at, size_bytes)
