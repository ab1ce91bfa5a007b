"""Downloads an object to a file, resuming after a broken response, or into memory.

Promises: a resumed download requests only the missing bytes, and only of the same object; bytes whose digest is not the expected one are
deleted, the part from an earlier attempt included, so that a download is never resumed from corrupt bytes. An object that was listed is
read only as it was listed: another size, ETag or time is an error, and so are bytes whose MD5 is not an ETag that is one.
"""

import glob
import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.storage.faults import DigestMismatch, ObjectChanged
from components.storage.local_faults import Incomplete
from components.storage.missing_keys import get_object
from components.storage.uri import StoredObject, StoreUri
from components.system.disk import full_disk_is_named

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
OWN_MARK_CHARACTERS = 8
"""Length of the mark in the name of a part that no other process continues; the mark of one that is continued is longer."""
_ABANDONED_S = 24 * 3600.0
_MD5 = re.compile(r"[0-9a-f]{32}")


class Download:
    """The download of one object into a local file; call `attempt` until it returns."""

    def __init__(self, client: "S3Client", uri: StoreUri, partial: Path, *, sha256: str | None, listed: StoredObject | None = None) -> None:
        """Download to `partial`; the bytes must have the digest `sha256` and be those of the object `listed`, unless they are None."""
        self._client = client
        self._uri = uri
        self._partial = partial
        self._expected = sha256
        self._listed = listed
        self._version: StoredObject | None = None
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._have_bytes = self._hash_partial()

    def _hash_partial(self) -> int:
        """Hash the bytes that an earlier process downloaded, and return their number."""
        if not self._partial.exists():
            return 0
        with self._partial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._update(chunk)
            return file.tell()

    def _update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._md5.update(chunk)

    def attempt(self) -> str:
        """Request the missing bytes and return the sha256 of all of them.

        Raises:
            Incomplete: if the response ended early. DigestMismatch: if the digest is not the expected one.
            ObjectChanged: if it is not the object that was listed.
            DiskFull: if the missing bytes do not fit on the disk.
        """
        response = self._request()
        with (
            full_disk_is_named(self._partial.parent, what=self._uri.name, needed_bytes=response.get("ContentLength")),
            self._partial.open("ab" if self._have_bytes else "wb", buffering=0) as file,
        ):
            for chunk in received_chunks(response):
                _write_all(file, chunk)
                self._update(chunk)
                self._have_bytes += len(chunk)
        sha256 = self._sha256.hexdigest()
        if self._expected is not None and sha256 != self._expected:
            self._start_over()
            raise mismatch_error(self._uri, sha256, self._expected)
        if self._listed is not None and (expected := _md5_of(response)) not in (None, self._md5.hexdigest()):
            md5 = self._md5.hexdigest()
            self._start_over()
            raise _object_changed_error(self._uri, f"bytes with MD5 {md5} were received, its ETag is {expected}")
        return sha256

    def _request(self) -> "GetObjectOutputTypeDef":
        """Request the object from the first missing byte on; start over if the object has changed or the store ignores ranges."""
        if not self._have_bytes:
            response = get_object(self._client, self._uri)
            self._version = describe_response(self._uri, response)
            self._require_listed(response, self._version)
            return response
        response = get_object(self._client, self._uri, Range=f"bytes={self._have_bytes}-")
        # Some stores (rclone 1.75) answer a range with 200 instead of 206, so the range in the response decides.
        content_range = _CONTENT_RANGE.fullmatch(response.get("ContentRange", ""))
        if content_range is None or int(content_range[1]) != self._have_bytes:
            response["Body"].close()
            self._start_over()
            return self._request()
        version = describe_response(self._uri, response, size_bytes=int(content_range[2]))
        if self._version is not None and not version.is_same(self._version):
            response["Body"].close()
            self._start_over()
            return self._request()
        self._require_listed(response, version)
        return response

    def _require_listed(self, response: "GetObjectOutputTypeDef", version: StoredObject) -> None:
        try:
            require_listed(version, self._listed)
        except ObjectChanged:
            response["Body"].close()
            self._start_over()
            raise

    def _start_over(self) -> None:
        self._have_bytes, self._version = 0, None
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._partial.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Remove the parts of downloads to `path` that were killed: one that is still running has written within its deadline."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * OWN_MARK_CHARACTERS}.partial"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


def received_chunks(response: "GetObjectOutputTypeDef", *, limit: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of a response, at most `limit` of them, and close it.

    Raises:
        Incomplete: after the last bytes, if the response ended before its length.
    """
    size_bytes = response.get("ContentLength")  # a response in chunks has none
    left_bytes = min((size for size in (size_bytes, limit) if size is not None), default=None)
    with response["Body"] as body:
        while left_bytes != 0 and (chunk := body.read(CHUNK_BYTES if left_bytes is None else min(CHUNK_BYTES, left_bytes))):
            left_bytes = None if left_bytes is None else left_bytes - len(chunk)
            yield chunk
    if left_bytes and size_bytes is not None:
        raise Incomplete(f"the last {left_bytes} of {size_bytes} bytes are missing")


def read_response(uri: StoreUri, response: "GetObjectOutputTypeDef", *, limit: int, listed: StoredObject | None = None) -> bytes:
    """Return the first `limit` bytes of a response, or all of it if it is shorter.

    Raises:
        Incomplete: if it ended early. ObjectChanged: if it is not of the object that was `listed`.
    """
    with response["Body"]:
        require_listed(describe_response(uri, response), listed)
        data = b"".join(received_chunks(response, limit=limit))
    if listed is not None and listed.is_size_known and len(data) != min(listed.size_bytes, limit):
        raise _object_changed_error(uri, f"it was listed with {listed.size_bytes} bytes, and {len(data)} were received")
    if listed is not None and len(data) == listed.size_bytes and (expected := _md5_of(response)) is not None:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != expected:
            raise _object_changed_error(uri, f"bytes with MD5 {md5} were received, its ETag is {expected}")
    return data


def check_response(uri: StoreUri, response: "GetObjectOutputTypeDef", sha256: str) -> None:
    """Read a response without keeping it.

    Raises:
        Incomplete: if it ended early. DigestMismatch: if its bytes do not have the digest `sha256`.
    """
    digest = hashlib.sha256()
    for chunk in received_chunks(response):
        digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise mismatch_error(uri, digest.hexdigest(), sha256)


def describe_response(uri: StoreUri, response: Mapping[str, Any], *, size_bytes: int | None = None) -> StoredObject:
    """Return the object that the header of a response describes; of a part of it, `size_bytes` is the size of the object."""
    size = response.get("ContentLength") if size_bytes is None else size_bytes
    return StoredObject(uri, size or 0, response.get("ETag", ""), response.get("LastModified"), is_size_known=size is not None)


def require_listed(version: StoredObject, listed: StoredObject | None) -> None:
    """Raise ObjectChanged unless `version` describes the object that was `listed`; None stands for any."""
    if listed is not None and not version.is_same(listed):
        was, now = (f"{item.size_bytes} bytes, version {item.version.strip()}" for item in (listed, version))
        raise _object_changed_error(listed.uri, f"it was listed with {was}, and is read with {now}")


def _object_changed_error(uri: StoreUri, what: str) -> ObjectChanged:
    return ObjectChanged(f"{uri} changed while it was read: {what}", hint="make sure that nothing writes to it, and run it again")


def _md5_of(response: "GetObjectOutputTypeDef") -> str | None:
    """Return the MD5 that the ETag of a response is, or None where it is something else: of parts, encrypted with a key, or missing."""
    etag = response.get("ETag", "").strip('"')
    is_encrypted = str(response.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in response
    return etag if _MD5.fullmatch(etag) and not is_encrypted else None


def _write_all(file: RawIOBase, data: bytes) -> None:
    """Write `data` unbuffered, so that a full disk is reported here and not when the file is closed."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def mismatch_error(uri: StoreUri, actual: str, expected: str) -> DigestMismatch:
    """Return the error for an object whose bytes are not the expected ones."""
    return DigestMismatch(
        f"{uri} has sha256 {actual}, expected {expected}",
        hint="the object was changed or is corrupt: run the step that writes it again",
    )
