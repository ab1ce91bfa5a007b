"""What was seen of a source: every verdict, and the accepted bytes, on local disk.

Promises: memory does not grow with the number of images; bytes that were accepted before are a duplicate, wherever they come from; images
come out in the order of their digests, so that everything made from them is a function of their content. Lives in a staging folder and is
thrown away with it: nothing here needs to survive.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from components.ingest.candidates import printable_name
from components.ingest.verdicts import Accepted, Rejected, Triple, Verdict

Split = Literal["train", "held_out"]
_THUMBNAILS_PER_CODE = 12
_PAGE = 500
_STORED = "SELECT sha256, extension, split, mean_r, mean_g, mean_b, std_r, std_g, std_b, at, size_bytes FROM images"
_SCHEMA = """
CREATE TABLE seen (
    n INTEGER PRIMARY KEY, source_name TEXT, verdict TEXT, detail TEXT, accepted INTEGER, sha256 TEXT,
    width INTEGER, height INTEGER, source_format TEXT, thumbnail BLOB
);
CREATE TABLE images (
    sha256 TEXT PRIMARY KEY, extension TEXT, at INTEGER, size_bytes INTEGER, split TEXT, perceptual_hash TEXT,
    mean_r REAL, mean_g REAL, mean_b REAL, std_r REAL, std_g REAL, std_b REAL, shard TEXT, offset INTEGER
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stored:
    """An accepted image in the ledger."""

    sha256: str
    extension: str
    split: Split
    mean: Triple
    std: Triple
    at: int
    size_bytes: int

    @property
    def key(self) -> str:
        """The image's name in the data set."""
        return self.sha256[:20]


def split_of(sha256: str, held_out: float) -> Split:
    """Return where an image belongs: a function of its digest and the share, so that it never moves when others join."""
    return "held_out" if int(sha256[:8], 16) / 2**32 < held_out else "train"


class Ledger:
    """A staging folder's record of one pass over a source. Use as a context manager."""

    def __init__(self, folder: Path, *, held_out: float) -> None:
        self._held_out = held_out
        self._bytes = (folder / "accepted.bytes").open("w+b")
        self._database = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None, check_same_thread=False)
        for line in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-8000"):
            self._database.execute(f"PRAGMA {line}")
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")
        self.verdicts: Counter[str] = Counter()
        self._end = 0

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._database.close()
        self._bytes.close()

    @property
    def accepted(self) -> int:
        """How many images are in."""
        return self.one("SELECT COUNT(*) FROM images")

    @property
    def rejected(self) -> dict[str, int]:
        """How many candidates were rejected, by code; what is no image by its name does not count."""
        found = self.rows(
            "SELECT verdict, COUNT(*) FROM seen WHERE NOT accepted AND verdict != 'ignored' GROUP BY verdict ORDER BY verdict"
        )
        return dict(found)

    def record(self, name: str, verdict: Verdict) -> None:
        """Note the verdict on one candidate, and keep the bytes if they are new."""
        if isinstance(verdict, Rejected):
            self._note(name, verdict.code, verdict.detail, thumbnail=verdict.thumbnail)
        elif self._keep(verdict):
            width, height = verdict.source_px
            values = (printable_name(name), "+".join(verdict.rules), verdict.sha256, width, height, verdict.source_format)
            self._database.execute(
                "INSERT INTO seen (source_name, verdict, accepted, sha256, width, height, source_format) VALUES (?,?,1,?,?,?,?)", values
            )
        else:
            twin = "the same bytes as an image before"
            self._note(name, "duplicate", f"{twin}: {verdict.key}", sha256=verdict.sha256)

    def _note(self, name: str, code: str, detail: str, *, sha256: str | None = None, thumbnail: bytes = b"") -> None:
        self.verdicts[code] += 1
        picture = thumbnail if self.verdicts[code] <= _THUMBNAILS_PER_CODE else b""
        self._database.execute(
            "INSERT INTO seen (source_name, verdict, detail, accepted, sha256, thumbnail) VALUES (?,?,?,0,?,?)",
            (printable_name(name), code, printable_name(detail), sha256, picture or None),
        )

    def _keep(self, image: Accepted) -> bool:
        """Store an image's bytes unless they are there; return whether they are new."""
        phash = None if image.perceptual_hash is None else f"{image.perceptual_hash:016x}"
        split = split_of(image.sha256, self._held_out)
        done = self._database.execute(
            "INSERT OR IGNORE INTO images VALUES (?,?,?,?,?,?,?,?,?,?,?,?,NULL,NULL)",
            (image.sha256, image.extension, self._end, len(image.data), split, phash, *image.mean, *image.std),
        )
        if done.rowcount == 0:
            return False
        self._bytes.write(image.data)
        self._end += len(image.data)
        return True

    def take_back(self, sha256: str, rejected: Rejected) -> None:
        """Reject an image that was accepted before."""
        self._database.execute(
            "UPDATE seen SET verdict=?, detail=?, accepted=0, thumbnail=? WHERE sha256=? AND accepted",
            (rejected.code, rejected.detail, rejected.thumbnail or None, sha256),
        )
        self._database.execute("DELETE FROM images WHERE sha256=?", (sha256,))

    def images(self) -> Iterator[Stored]:
        """Yield the accepted images in the order of their digests; the ledger may be changed meanwhile."""
        last = ""
        while page := self.rows(f"{_STORED} WHERE sha256 > ? ORDER BY sha256 LIMIT ?", last, _PAGE):
            yield from map(_stored, page)
            last = page[-1][0]

    def image(self, sha256: str) -> Stored | None:
        """Return one accepted image, or None if it is not in."""
        found = self.rows(f"{_STORED} WHERE sha256 = ?", sha256)
        return _stored(found[0]) if found else None

    def data(self, image: Stored) -> bytes:
        """Return the bytes of an image."""
        self._bytes.flush()
        self._bytes.seek(image.at)
        return self._bytes.read(image.size_bytes)

    def place(self, sha256: str, shard: str, offset: int) -> None:
        """Note where an image lies in the data set."""
        self._database.execute("UPDATE images SET shard=?, offset=? WHERE sha256=?", (shard, offset, sha256))

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the answer to a query on `seen` and `images`."""
        with closing(self._database.execute(query, values)) as cursor:
            return cursor.fetchall()

    def one(self, query: str, *values: Any) -> Any:
        """Return the single value that answers a query."""
        return self.rows(query, *values)[0][0]

    def pages(self, query: str, page: int) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the answer to a query in pages."""
        with closing(self._database.execute(query)) as cursor:
            while rows := cursor.fetchmany(page):
                yield rows


def _stored(row: tuple[Any, ...]) -> Stored:
    sha256, extension, split, mr, mg, mb, sr, sg, sb, at, size_bytes = row
    return Stored(sha256, extension, split, (mr, mg, mb), (sr, sg, sb), at, size_bytes)
