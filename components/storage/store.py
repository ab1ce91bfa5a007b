"""The object store client that the steps use: reads and writes with verification and retries.

Promises: see the package. Every call is retried (`retried_calls.py`). Safe to share between threads.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError

from components.errors import DataRefused
from components.storage.answers import MISSING
from components.storage.credentials import ChainCredentials
from components.storage.download import (
    OWN_MARK_CHARACTERS,
    Download,
    check_response,
    describe_response,
    mismatch_error,
    read_response,
    remove_abandoned,
)
from components.storage.faults import answer_to
from components.storage.local_faults import Incomplete
from components.storage.missing_keys import delete_object, get_object, head, with_missing_keys
from components.storage.pages import pages_with_an_end
from components.storage.retried_calls import RetriedCalls
from components.storage.upload import PART_BYTES, UploadCheck, Uploads
from components.storage.uri import StoredObject, StoreUri
from components.system.disk import require_room

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_SPARE_BYTES = 2**18
"""What a server writes beside an object."""


class ObjectStore:
    """Objects, read and written through one client."""

    def __init__(
        self,
        client: "S3Client",
        *,
        credentials: ChainCredentials | None = None,
        addressing: str,
        other_style: "Callable[[], ObjectStore]",
        deadline_s: float,
        disk: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.addressing = addressing
        self._other_style = other_style
        self._disk = disk
        self._calls = RetriedCalls(credentials, deadline_s=deadline_s, sleep=sleep, clock=clock)
        self._uploads = Uploads(client, self._calls.run)

    def put_bytes(self, uri: StoreUri, data: bytes) -> str:
        """Store `data` under `uri`, verify the upload and return the sha256."""
        self._require_room(uri, len(data))
        digest = hashlib.sha256(data).hexdigest()
        read_back = self.upload_check(uri) == "read-back"

        def upload() -> None:
            self._uploads.put(uri, data)
            if read_back:
                self._read_back(uri, digest)

        self._calls.run("put", uri, upload)
        return digest

    def put_file(self, uri: StoreUri, path: Path) -> str:
        """Store the file at `path` under `uri`, a large one in parallel parts; verify the upload and return the sha256."""
        if path.stat().st_size <= PART_BYTES:
            return self.put_bytes(uri, path.read_bytes())
        self._require_room(uri, path.stat().st_size)
        read_back = self.upload_check(uri) == "read-back"

        def upload() -> str:
            digest = self._uploads.put_parts(uri, path)
            if read_back:
                self._read_back(uri, digest)
            return digest

        return self._calls.run("put", uri, upload)

    def get_bytes(self, uri: StoreUri, *, sha256: str | None = None, max_bytes: int = 64 * 2**20) -> bytes:
        """Return the object's bytes, verified against `sha256` unless it is None.

        Raises:
            ObjectMissing: if it does not exist. DigestMismatch: if it has another digest. DataRefused: if it is larger than `max_bytes`.
        """

        def download() -> bytes:
            response = get_object(self.client, uri)
            size_bytes = response.get("ContentLength")
            if size_bytes is not None and size_bytes > max_bytes:
                response["Body"].close()
                raise DataRefused(f"{uri} has {size_bytes} bytes, at most {max_bytes} are expected")
            data = read_response(uri, response, limit=max_bytes + 1)  # one more shows an object that is larger than its header claims
            if len(data) > max_bytes:
                raise DataRefused(f"{uri} has more than {max_bytes} bytes, which is the most that is expected")
            actual = hashlib.sha256(data).hexdigest()
            if sha256 is not None and actual != sha256:
                raise mismatch_error(uri, actual, sha256)
            return data

        return self._calls.run("get", uri, download)

    def get_head(self, uri: StoreUri, *, limit: int, listed: StoredObject | None = None) -> bytes:
        """Return the object's bytes, or its first `limit` of them if it is larger.

        Raises:
            ObjectChanged: if it is not the object that was `listed`, or its bytes do not have the listed ETag, unless that is None.
        """

        def download() -> bytes:
            return read_response(uri, get_object(self.client, uri), limit=limit, listed=listed)

        return self._calls.run("get", uri, download)

    def get_file(
        self, uri: StoreUri, path: Path, *, sha256: str | None = None, continued: bool = False, listed: StoredObject | None = None
    ) -> str:
        """Download to `path`, which appears only when the bytes are complete and verified against `sha256`; return their sha256.

        A broken response is resumed. With `continued` the next process resumes it too: the received bytes are kept beside `path`.

        Raises:
            ObjectChanged: if it is not the object that was `listed`, unless that is None.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        mark = uuid.uuid4().hex[:OWN_MARK_CHARACTERS]
        if continued:
            listed = listed or self.describe(uri)
            mark = hashlib.sha256(f"{listed.size_bytes} {listed.version}".encode()).hexdigest()[:16]
        partial = path.with_name(f".{path.name}.{mark}.partial")
        download = Download(self.client, uri, partial, sha256=sha256, listed=listed)
        try:
            digest = self._calls.run("get", uri, download.attempt)
            partial.replace(path)
        finally:
            if not continued:
                partial.unlink(missing_ok=True)
        return digest

    def check(self, uri: StoreUri, sha256: str) -> None:
        """Read an object without keeping it, and verify its bytes.

        Raises:
            ObjectMissing: if it does not exist. DigestMismatch: if its bytes do not have the digest `sha256`.
        """
        self._calls.run("get", uri, lambda: self._read_back(uri, sha256))

    def copy(self, source: StoreUri, target: StoreUri) -> None:
        """Copy an object of less than 5 GB within the store.

        Raises:
            ObjectMissing: if it does not exist.
        """
        where = {"Bucket": source.bucket, "Key": source.key}

        def copy() -> None:
            self.client.copy_object(Bucket=target.bucket, Key=target.key, CopySource=where)  # type: ignore[arg-type]

        self._calls.run("get", source, lambda: with_missing_keys(self.client, source, copy))

    def describe(self, uri: StoreUri) -> StoredObject:
        """Return what the store says of an object: its size and version.

        Raises:
            ObjectMissing: if the object does not exist.
        """
        return self._calls.run("get", uri, lambda: describe_response(uri, head(self.client, uri)))

    def version(self, uri: StoreUri) -> str:
        """Return a text that changes when the object's bytes do, as far as the store reports it.

        Raises:
            ObjectMissing: if the object does not exist.
        """
        described_object = self.describe(uri)
        return f"{described_object.size_bytes} {described_object.version}"

    def exists(self, uri: StoreUri) -> bool:
        """Return whether an object has exactly this key."""

        def look() -> bool:
            try:
                head(self.client, uri)
            except ClientError as error:
                if answer_to(error) is MISSING:
                    return False
                raise
            return True

        return self._calls.run("look for", uri, look)

    def folders(self, prefix: StoreUri) -> list[str]:
        """Return the names of the folders in `prefix`, sorted: the first segment of all keys below it that have more than one."""

        def listing() -> list[str]:
            below = f"{prefix.key.rstrip('/')}/".lstrip("/")
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=below, Delimiter="/")
            all_pages = pages_with_an_end(pages, "CommonPrefixes", prefix)
            prefixes = [item["Prefix"] for page in all_pages for item in page.get("CommonPrefixes", [])]
            return sorted(key.removeprefix(below).rstrip("/") for key in prefixes)

        return self._calls.run("list", prefix, listing)

    def list(self, prefix: StoreUri) -> list[StoredObject]:
        """Return all objects below `prefix`, sorted by key; raises ListingEndless if the store's pages have no end."""

        def listing() -> list[StoredObject]:
            below = prefix.key.rstrip("/")
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=f"{below}/" if below else "")
            all_pages = pages_with_an_end(pages, "Contents", prefix)
            objects = [_stored_object(prefix.bucket, item) for page in all_pages for item in page.get("Contents", [])]
            return sorted(objects, key=lambda item: item.uri.key)

        return self._calls.run("list", prefix, listing)

    def delete(self, uri: StoreUri) -> None:
        """Delete an object; a missing one is no error."""
        self._calls.run("delete", uri, lambda: delete_object(self.client, uri))

    def call(self, verb: str, uri: StoreUri, request: Callable[[], T]) -> T:
        """Return the result of `request`, made with `client`: with the retries and the errors of every other call."""
        return self._calls.run(verb, uri, request)

    def with_other_addressing(self) -> "ObjectStore":
        """Return a client of the same store that addresses buckets in the other style (path or virtual-hosted)."""
        return self._other_style()

    def upload_check(self, near: StoreUri) -> UploadCheck:
        """Return how uploads are verified; determined once, with a small object beside `near`."""
        return self._uploads.check(near)

    def _read_back(self, uri: StoreUri, sha256: str) -> None:
        check_response(uri, get_object(self.client, uri), sha256)

    def _require_room(self, uri: StoreUri, size_bytes: int) -> None:
        """Check that an object fits on the disk of a server on this machine, which would only report an internal error."""
        if self._disk is not None:
            require_room(self._disk, uri.name, size_bytes + _SPARE_BYTES)


def _stored_object(bucket: str, item: Mapping[str, Any]) -> StoredObject:
    """Return an entry of a listing."""
    if "Key" not in item or "Size" not in item:
        raise Incomplete("an entry of the listing has no key or no size")
    return StoredObject(StoreUri(bucket, item["Key"]), item["Size"], item.get("ETag", ""), item.get("LastModified"))
