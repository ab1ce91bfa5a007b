"""Content of a dataset: the images in its shards, and the digest that follows from them.

Promises: the digest is computed from the bytes of the images, not from what a shard or a manifest says of them; a shard is a plain sequence
of tar headers and bytes, and anything else in it (links, long names, extended headers) is refused unread.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, get_args

from components.errors import DataRefused
from components.manifests import DatasetManifest, Split

FORMAT = 3
MANIFEST = "dataset.json"
"""Written last: a dataset without it does not exist."""
_BLOCK = tarfile.BLOCKSIZE
_LARGEST_FACTS_BYTES = 2**16
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """An image in a shard: its name, the sha256 of its bytes, its split, and where its bytes are."""

    key: str
    sha256: str
    split: Split
    shard: Path
    offset: int
    size_bytes: int


def dataset_digest(image_px: int, images: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a dataset from (sha256, split) of its images, in the order of their sha256.

    It depends on the stored bytes and on the split, and on nothing else.
    """
    digest, last = hashlib.sha256(f"celebdit data set {FORMAT}, {image_px} px\n".encode()), ""
    for sha256, split in images:
        assert sha256 > last, "images are sorted by digest, without repetition"
        digest.update(f"{sha256} {split}\n".encode())
        last = sha256
    return digest.hexdigest()


def read_members(paths: Sequence[Path], manifest: DatasetManifest) -> list[Member]:
    """Return the images in the shards `paths`, in the order of their keys.

    Raises:
        DataRefused: if a file is not a shard, or the images are not those that the digest of `manifest` names.
    """
    return sort_members((member for path in paths for member in read_shard(path)), manifest)


def sort_members(unsorted: Iterable[Member], manifest: DatasetManifest) -> list[Member]:
    """Return the images of a dataset in the order of their keys.

    Raises:
        DataRefused: if they are not those that the digest of `manifest` names.
    """
    members = sorted(unsorted, key=lambda member: member.sha256)
    for member, following in pairwise(members):
        if member.sha256 == following.sha256:
            raise DataRefused(f"{manifest.uri} holds image {member.key} twice")
    digest = dataset_digest(manifest.image_px, ((member.sha256, member.split) for member in members))
    if digest != manifest.digest:
        raise DataRefused(
            f"the images in {manifest.uri} have the dataset digest {digest}, expected {manifest.digest}",
            hint="they were replaced: run the ingest step again, which makes the dataset again",
        )
    return members


def read_shard(path: Path) -> Iterator[Member]:
    """Yield the images of one shard; the JSON of an image follows it."""
    image: tuple[str, str, int, int] | None = None
    with path.open("rb") as file:
        for name, offset, size_bytes in _entries(file, path.name):
            file.seek(offset)
            if not name.endswith(".json"):
                image = (name.rsplit(".", 1)[0], _sha256(file, size_bytes), offset, size_bytes)
                continue
            if image is None or size_bytes > _LARGEST_FACTS_BYTES:
                raise DataRefused(f"{path.name} is not a shard: {name} has no image before it, or is too large")
            yield _member(path, image, _split(file.read(size_bytes), f"{path.name}: {name}"))
            image = None
    if image is not None:
        raise DataRefused(f"{path.name} is not a shard: it ends after image {image[0]}")


def _member(path: Path, image: tuple[str, str, int, int], split: Split) -> Member:
    key, sha256, offset, size_bytes = image
    if key != sha256[:20]:
        raise DataRefused(f"image {key} in {path.name} has sha256 {sha256}, which its name does not begin")
    return Member(key, sha256, split, path, offset, size_bytes)


def _entries(file: IO[bytes], shard: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of the entries of a tar archive of regular files with short names."""
    at, end = 0, file.seek(0, 2)
    while True:
        file.seek(at)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            return
        try:
            entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise DataRefused(f"{shard} is not a shard: {error}") from error
        offset = at + _BLOCK
        if entry.type != tarfile.REGTYPE or not 0 <= entry.size <= end - offset:  # a negative size leads back, and round for ever
            raise DataRefused(f"{shard} is not a shard: {entry.name!r} is not a regular file, or ends beyond the shard")
        yield entry.name, offset, entry.size
        at = offset + -(-entry.size // _BLOCK) * _BLOCK


def _sha256(file: IO[bytes], size_bytes: int) -> str:
    digest = hashlib.sha256()
    while size_bytes > 0 and (chunk := file.read(min(size_bytes, _CHUNK_BYTES))):
        digest.update(chunk)
        size_bytes -= len(chunk)
    return digest.hexdigest()


def _split(raw: bytes, where: str) -> Split:
    try:
        split = json.loads(raw)["split"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataRefused(f"{where} does not name a split") from error
    if split not in get_args(Split):
        raise DataRefused(f"{where} names the unknown split {split!r}")
    return split
