"""Downloads an object to a file, resuming after a broken response.

Promises: a resumed download requests only the missing bytes, and only of the same object; bytes whose digest is not the expected one are
deleted, the part from an earlier attempt included, so that a download is never resumed from corrupt bytes.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from components.storage.faults import DigestMismatch, Incomplete
from components.storage.uri import StoreUri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

CHUNK_BYTES = 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class Download:
    """The download of one object into a local file; call `attempt` until it returns."""

    def __init__(self, client: "S3Client", uri: StoreUri, partial: Path, *, sha256: str | None) -> None:
        self._client = client
        self._uri = uri
        self._partial = partial
        self._expected = sha256
        self._version: str | None = None
        self._sha256 = hashlib.sha256()
        self._have_bytes = self._hash_partial()

    def _hash_partial(self) -> int:
        """Hash the bytes that an earlier process downloaded, and return their number."""
        if not self._partial.exists():
            return 0
        with self._partial.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self._sha256.update(chunk)
            return file.tell()

    def attempt(self) -> str:
        """Request the missing bytes and return the sha256 of all of them.

        Raises:
            Incomplete: if the response ended early. DigestMismatch: if the digest is not the expected one.
        """
        response = self._request()
        with response["Body"] as body, self._partial.open("ab" if self._have_bytes else "wb") as file:
            rest_bytes = response.get("ContentLength")  # a response in chunks has none
            total_bytes = None if rest_bytes is None else self._have_bytes + rest_bytes
            while chunk := body.read(CHUNK_BYTES):
                file.write(chunk)
                self._sha256.update(chunk)
                self._have_bytes += len(chunk)
        if total_bytes is not None and self._have_bytes != total_bytes:
            raise Incomplete(f"{self._have_bytes} of {total_bytes} bytes")
        sha256 = self._sha256.hexdigest()
        if self._expected is not None and sha256 != self._expected:
            self._start_over()
            raise mismatch(self._uri, sha256, self._expected)
        return sha256

    def _request(self) -> "GetObjectOutputTypeDef":
        """Request the object from the first missing byte on; start over if the object has changed or the store ignores ranges."""
        if not self._have_bytes:
            response = self._client.get_object(Bucket=self._uri.bucket, Key=self._uri.key)
            self._version = _version(response)
            return response
        response = self._client.get_object(Bucket=self._uri.bucket, Key=self._uri.key, Range=f"bytes={self._have_bytes}-")
        # Some stores (rclone 1.75) answer a range with 200 instead of 206, so the range in the response decides.
        content_range = _CONTENT_RANGE.fullmatch(response.get("ContentRange", ""))
        is_same = self._version in (None, _version(response))
        if content_range is None or int(content_range[1]) != self._have_bytes or not is_same:
            response["Body"].close()
            self._start_over()
            return self._request()
        return response

    def _start_over(self) -> None:
        self._have_bytes, self._version, self._sha256 = 0, None, hashlib.sha256()
        self._partial.unlink(missing_ok=True)


def mismatch(uri: StoreUri, actual: str, expected: str) -> DigestMismatch:
    """Return the error for an object whose bytes are not the expected ones."""
    return DigestMismatch(
        f"{uri} has sha256 {actual}, expected {expected}",
        hint="the object was changed or is corrupt: delete it and run the step that writes it again",
    )


def _version(response: "GetObjectOutputTypeDef") -> str:
    return f"{response.get('ETag', '')} {response.get('LastModified', '')}"
