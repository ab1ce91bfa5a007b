"""Locations in a store: bucket and key, joined so that a key never leaves its prefix.

Promises: locations from `parse` and `/` have only segments that are safe in a key and in a path. Keys of other tools (a listing, a source
of images) can hold anything; `parse_source` reads them, and they are never joined to a path.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from components.errors import BadInput, shorten

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=@+-]*")
_LOCATION = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)
_LONGEST_KEY_BYTES = 1024
_LONGEST_SEGMENT = 255
"""Of a file's name, which it is on a server that keeps objects as files."""


@dataclass(frozen=True)
class StoreUri:
    """An S3 location. `/` joins one key segment after checking that it stays below."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "StoreUri":
        """Read `s3://bucket/key`.

        Raises:
            BadInput: if it is not such a location, or a segment could escape a prefix.
        """
        match = _LOCATION.fullmatch(text)
        if match is None:
            raise BadInput(f"{text!r} is not an S3 location", hint="write s3://bucket/key, the bucket in lower case")
        uri = cls(match[1], "")
        for segment in (match[2] or "").strip("/").split("/") if match[2] else ():
            uri = uri / segment
        return uri

    @classmethod
    def parse_source(cls, text: str) -> "StoreUri":
        """Read the location of objects that other tools wrote: any printable key without `..`; a trailing slash is kept.

        Raises:
            BadInput: if it is not such a location.
        """
        match = _LOCATION.fullmatch(text)
        key = (match[2] or "") if match else ""
        if match is None or not key.isprintable() or ".." in key.split("/") or len(key.encode()) > _LONGEST_KEY_BYTES:
            raise BadInput(f"{text!r} is not an S3 location", hint="write s3://bucket/archive.zip or s3://bucket/folder/")
        return cls(match[1], key)

    def __truediv__(self, segment: str) -> "StoreUri":
        if not _SEGMENT.fullmatch(segment) or len(segment) > _LONGEST_SEGMENT:
            raise BadInput(
                f"{shorten(repr(segment))} cannot be part of an object key",
                hint=f"use at most {_LONGEST_SEGMENT} letters, digits and . _ = @ + -, starting with a letter or digit",
            )
        return StoreUri(self.bucket, f"{self.key}/{segment}" if self.key else segment)

    def join(self, path: str) -> "StoreUri":
        """Append several segments, written as one path with slashes."""
        uri = self
        for segment in path.split("/"):
            uri = uri / segment
        return uri

    @property
    def name(self) -> str:
        """The last segment."""
        return self.key.rsplit("/", 1)[-1]

    def relative_to(self, prefix: "StoreUri") -> str:
        """Return the key below `prefix`."""
        below = prefix.key.rstrip("/")
        return self.key[len(below) + 1 :] if below else self.key

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


@dataclass(frozen=True)
class StoredObject:
    """An object as a store describes it, in a listing or in the header of a response."""

    uri: StoreUri
    size_bytes: int
    etag: str = ""
    """As the store writes it, in quotes; with nothing in them if it gives none."""
    modified: datetime | None = None
    is_size_known: bool = True
    """False for a response that does not say its length: then `size_bytes` is 0."""

    @property
    def version(self) -> str:
        """A text that changes when the object's bytes do, as far as the store reports it."""
        return f"{self.etag} {self.modified.isoformat() if self.modified else ''}"

    def is_same(self, other: "StoredObject") -> bool:
        """Return whether both describe the same bytes: equal sizes and ETags, or times, of which headers have whole seconds only."""
        same_size = self.size_bytes == other.size_bytes or not (self.is_size_known and other.is_size_known)
        if self.etag.strip('"') and other.etag.strip('"'):
            return same_size and self.etag == other.etag
        seconds = [item.modified and item.modified.replace(microsecond=0) for item in (self, other)]
        return same_size and seconds[0] == seconds[1]
