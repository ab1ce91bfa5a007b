"""Tar shards in the WebDataset convention: `<key>.jpg|png` beside `<key>.json`, deterministic bytes.

Promises: the same images in the same order give the same shard bytes; every image's position in its shard is known, so a table can point at
it. Where shards go is not decided here.
"""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from components.ingest.images import Accepted

_BLOCK = 512


@dataclass(frozen=True)
class Placed:
    """Where an image lies: shard, and offset and size of its bytes in it."""

    shard: str
    offset: int
    size_bytes: int


class ShardWriter:
    """Write images into `shard-00000.tar`, `shard-00001.tar`, ... in a local folder, beginning a new one at `shard_bytes`."""

    def __init__(self, folder: Path, *, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._tar: tarfile.TarFile | None = None
        self.paths: list[Path] = []
        self.counts: list[int] = []

    def add(self, image: Accepted, facts: dict[str, object]) -> Placed:
        """Append an image and its facts."""
        if self._tar is None or self._tar.offset >= self._shard_bytes:
            self.close()
            self.paths.append(self._folder / f"shard-{len(self.paths):05d}.tar")
            self.counts.append(0)
            self._tar = tarfile.open(self.paths[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()
        offset = self._tar.offset + _BLOCK
        self._append(f"{image.key}.{image.extension}", image.data)
        self._append(f"{image.key}.json", json.dumps(facts, sort_keys=True).encode())
        self.counts[-1] += 1
        return Placed(shard=self.paths[-1].name, offset=offset, size_bytes=len(image.data))

    def _append(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        self._tar.addfile(header, io.BytesIO(data))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None
