"""Tar shards in the WebDataset convention: `<key>.jpg|png` beside `<key>.json`.

Promises: the same images in the same order give the same shard bytes; nothing in a shard depends on where its images came from; every
image's offset is returned, so that the table can refer to it. Does not upload; see `publish.py`.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from components.ingest.dataset.ledger import StoredImage

_BLOCK = tarfile.BLOCKSIZE
_BUFFER_BYTES = 2**20  # every write releases the interpreter lock, which the uploading threads then take


def _blank_header() -> bytes:
    blank = tarfile.TarInfo()
    blank.mode = 0o644
    header = bytearray(blank.tobuf(tarfile.USTAR_FORMAT))
    header[148:156] = b" " * 8  # the checksum is taken as if its own field were blank (POSIX.1-1988)
    return bytes(header)


_BLANK_HEADER = _blank_header()
_BLANK_SUM = sum(_BLANK_HEADER) - sum(_BLANK_HEADER[124:135])


class Placement(NamedTuple):
    """Shard of an image, and offset and size of its bytes in it."""

    shard: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class FinishedShard:
    """A complete shard in its local folder."""

    name: str
    size_bytes: int
    num_images: int


class ShardWriter:
    """Write images into `shard-00000.tar`, `shard-00001.tar`, ... in a local folder, starting a new one at `shard_bytes`."""

    def __init__(self, folder: Path, *, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._file: BinaryIO | None = None
        self._num_shards = 0

    def add(self, image: StoredImage, data: bytes) -> tuple[Placement, FinishedShard | None]:
        """Append an image and its JSON; return its placement, and the previous shard if that is complete now."""
        finished = self.close() if self._file is not None and self._at >= self._shard_bytes else None
        if self._file is None:
            self._begin()
        offset = self._at + _BLOCK
        facts = encode_facts(image)
        self._write(
            encode_header(f"{image.key}.{image.extension}", len(data)),
            data,
            bytes(-len(data) % _BLOCK),
            encode_header(f"{image.key}.json", len(facts)),
            facts,
            bytes(-len(facts) % _BLOCK),
        )
        self._count += 1
        return Placement(shard=self._name, offset=offset, size_bytes=len(data)), finished

    def _begin(self) -> None:
        self._name = f"shard-{self._num_shards:05d}.tar"
        self._file = (self._folder / self._name).open("wb", buffering=_BUFFER_BYTES)
        self._num_shards += 1
        self._at, self._count = 0, 0

    def _write(self, *pieces: bytes) -> None:
        assert self._file is not None
        for piece in pieces:
            self._at += self._file.write(piece)

    def close(self) -> FinishedShard | None:
        """Finish the open shard and return it, or None if none is open."""
        if self._file is None:
            return None
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self._at % tarfile.RECORDSIZE))
        self._file.close()
        self._file = None
        return FinishedShard(name=self._name, size_bytes=self._at, num_images=self._count)


def encode_header(name: str, size_bytes: int) -> bytes:
    """Return what `tarfile` writes for a regular file with a short ASCII name.

    `tarfile` takes as long as decoding a small image, so one of its headers is kept and name, size and checksum are filled in.
    """
    encoded, size = name.encode("ascii"), b"%011o" % size_bytes
    assert len(encoded) <= 100, "a name is a digest and a suffix"
    assert len(size) == 11, "an image is smaller than the limit per image"
    header = bytearray(_BLANK_HEADER)
    header[: len(encoded)] = encoded
    header[124:135] = size
    header[148:155] = b"%06o\0" % (_BLANK_SUM + sum(encoded) + sum(size))
    return bytes(header)


def encode_facts(image: StoredImage) -> bytes:
    """Return an image's digest, split and colours as `json.dumps` writes them with sorted keys, which takes three times as long."""
    mean, std = list(image.mean), list(image.std)  # finite floats, whose text is the same in Python and in JSON
    facts = f'{{"key": "{image.key}", "mean": {mean}, "sha256": "{image.sha256}", "split": "{image.split}", "std": {std}}}'
    return facts.encode("ascii")
