"""The object store client that the steps use: reads and writes with verification and retries.

Promises: see the package. Every call retries temporary errors until the deadline and corrupt transfers three times, and raises other errors
at once. Safe to share between threads. Longer than other modules, because every operation shares one retry and one check of its bytes.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError, NoCredentialsError

from components.errors import BadInput, CelebditError, DataRefused, StorageUnavailable, first_line
from components.storage.download import CHUNK_BYTES, Download, mismatch
from components.storage.faults import (
    CORRUPT_ATTEMPTS,
    MISCONFIGURED,
    DigestMismatch,
    Incomplete,
    ObjectMissing,
    StorageRefused,
    code,
    describe_fault,
    is_corrupt,
    is_refusal,
    is_temporary,
    is_unreadable,
    status,
)
from components.storage.upload import PART_BYTES, UploadCheck, Uploads
from components.storage.uri import StoredObject, StoreUri
from components.system.retry import RetryPolicy, retry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")
_log = logging.getLogger(__name__)


class ObjectStore:
    """Objects, read and written through one client."""

    def __init__(
        self,
        client: "S3Client",
        *,
        addressing: str,
        other_style: "Callable[[], ObjectStore]",
        deadline_s: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.addressing = addressing
        self._other_style = other_style
        self._policy = RetryPolicy(deadline_s=deadline_s)
        self._sleep = sleep
        self._clock = clock
        self._uploads = Uploads(client, self._with_retries)

    def put_bytes(self, uri: StoreUri, data: bytes) -> str:
        """Store `data` under `uri`, verify the upload and return the sha256."""
        digest = hashlib.sha256(data).hexdigest()
        read_back = self.upload_check(uri) == "read-back"

        def upload() -> None:
            self._uploads.put(uri, data)
            if read_back:
                self._read_back(uri, digest)

        self._with_retries("put", uri, upload)
        return digest

    def put_file(self, uri: StoreUri, path: Path) -> str:
        """Store the file at `path` under `uri`, a large one in parallel parts; verify the upload and return the sha256."""
        if path.stat().st_size <= PART_BYTES:
            return self.put_bytes(uri, path.read_bytes())
        read_back = self.upload_check(uri) == "read-back"

        def upload() -> str:
            digest = self._uploads.put_parts(uri, path)
            if read_back:
                self._read_back(uri, digest)
            return digest

        return self._with_retries("put", uri, upload)

    def get_bytes(self, uri: StoreUri, *, sha256: str | None = None, max_bytes: int = 64 * 2**20) -> bytes:
        """Return the object's bytes, verified against `sha256` unless it is None.

        Raises:
            ObjectMissing: if it does not exist. DigestMismatch: if it has another digest. DataRefused: if it is larger than `max_bytes`.
        """

        def download() -> bytes:
            response = self.client.get_object(Bucket=uri.bucket, Key=uri.key)
            size_bytes = response.get("ContentLength")
            if size_bytes is not None and size_bytes > max_bytes:
                response["Body"].close()
                raise DataRefused(f"{uri} has {size_bytes} bytes, at most {max_bytes} are expected")
            data = _read(response, limit=max_bytes + 1)  # one more shows an object that is larger and does not say so
            if len(data) > max_bytes:
                raise DataRefused(f"{uri} has more than {max_bytes} bytes, which is the most that is expected")
            actual = hashlib.sha256(data).hexdigest()
            if sha256 is not None and actual != sha256:
                raise mismatch(uri, actual, sha256)
            return data

        return self._with_retries("get", uri, download)

    def get_head(self, uri: StoreUri, *, limit: int) -> bytes:
        """Return the object's bytes, or its first `limit` of them if it is larger."""
        return self._with_retries("get", uri, lambda: _read(self.client.get_object(Bucket=uri.bucket, Key=uri.key), limit=limit))

    def get_file(self, uri: StoreUri, path: Path, *, sha256: str | None = None, continued: bool = False) -> str:
        """Download to `path`, which appears only when the bytes are complete and verified against `sha256`; return their sha256.

        A broken response is resumed. With `continued` the next process resumes it too: the received bytes are kept beside `path`.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        mark = hashlib.sha256(self.version(uri).encode()).hexdigest()[:16] if continued else uuid.uuid4().hex[:8]
        partial = path.with_name(f".{path.name}.{mark}.partial")
        download = Download(self.client, uri, partial, sha256=sha256)
        try:
            digest = self._with_retries("get", uri, download.attempt)
            partial.replace(path)
        finally:
            if not continued:
                partial.unlink(missing_ok=True)
        return digest

    def version(self, uri: StoreUri) -> str:
        """Return a text that changes when the object's bytes do, as far as the store reports it.

        Raises:
            ObjectMissing: if the object does not exist.
        """

        def head() -> str:
            response = self.client.head_object(Bucket=uri.bucket, Key=uri.key)
            return f"{response.get('ContentLength', '')} {_stamp(response)}"

        return self._with_retries("get", uri, head)

    def exists(self, uri: StoreUri) -> bool:
        """Return whether an object has exactly this key."""

        def head() -> bool:
            try:
                self.client.head_object(Bucket=uri.bucket, Key=uri.key)
            except ClientError as error:
                if status(error) == 404 or (status(error) == 403 and self._is_unlisted(uri)):
                    return False
                raise
            return True

        return self._with_retries("look for", uri, head)

    def list(self, prefix: StoreUri) -> list[StoredObject]:
        """Return all objects below `prefix`, sorted by key."""

        def listing() -> list[StoredObject]:
            below = prefix.key.rstrip("/")
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=f"{below}/" if below else "")
            objects = [_listed(prefix.bucket, item) for page in pages for item in page.get("Contents", [])]
            return sorted(objects, key=lambda item: item.uri.key)

        return self._with_retries("list", prefix, listing)

    def delete(self, uri: StoreUri) -> None:
        """Delete an object; a missing one is no error."""
        self._with_retries("delete", uri, lambda: self.client.delete_object(Bucket=uri.bucket, Key=uri.key))

    def with_other_addressing(self) -> "ObjectStore":
        """Return a client of the same store that addresses buckets in the other style (path or virtual-hosted)."""
        return self._other_style()

    def upload_check(self, near: StoreUri) -> UploadCheck:
        """Return how uploads are verified; determined once, with a small object beside `near`."""
        return self._uploads.check(near)

    def _refusal_for(self, cause: ClientError, verb: str, uri: StoreUri) -> Exception:
        if verb == "get" and status(cause) == 403 and self._is_unlisted(uri):
            return ObjectMissing(f"{uri} does not exist")
        return StorageRefused(
            f"object storage refuses to {verb} {uri}: {describe_fault(cause)}",
            hint="check the bucket's name, the credentials (AWS_ACCESS_KEY_ID, ...) and the permissions to put, get, list and delete",
        )

    def _is_unlisted(self, uri: StoreUri) -> bool:
        """Return whether a listing does not have the key: AWS answers 403 for a key that is missing to who may not list by its rules."""
        with suppress(Exception):  # the refusal itself matters more
            page = self.client.list_objects_v2(Bucket=uri.bucket, Prefix=uri.key, MaxKeys=1)
            return not any(item.get("Key") == uri.key for item in page.get("Contents", []))
        return False

    def _read_back(self, uri: StoreUri, digest: str) -> None:
        response = self.client.get_object(Bucket=uri.bucket, Key=uri.key)
        sha256, size_bytes = hashlib.sha256(), 0
        with response["Body"] as body:
            while chunk := body.read(CHUNK_BYTES):
                sha256.update(chunk)
                size_bytes += len(chunk)
        if size_bytes != response.get("ContentLength", size_bytes):
            raise Incomplete(f"{size_bytes} of {response['ContentLength']} bytes")
        if sha256.hexdigest() != digest:
            raise mismatch(uri, sha256.hexdigest(), digest)

    def _with_retries(self, verb: str, uri: StoreUri, call: Callable[[], T]) -> T:
        """Return the result of `call`, retrying temporary errors and corrupt transfers; other errors become the project's own."""
        attempts, corrupt, started_s = 0, 0, self._clock()

        def call_once() -> T:
            nonlocal attempts
            attempts += 1
            return call()

        def is_worth_retrying(error: Exception) -> bool:
            nonlocal corrupt
            if is_corrupt(error):
                corrupt += 1
                return corrupt < CORRUPT_ATTEMPTS
            return is_temporary(error)

        try:
            result = retry(
                call_once,
                what=f"{verb} {uri}",
                log=_log,
                policy=self._policy,
                is_temporary=is_worth_retrying,
                describe=describe_fault,
                clock=self._clock,
                sleep=self._sleep,
            )
        except CelebditError:
            raise
        except Exception as cause:
            raise self._error_for(cause, verb, uri, attempts, self._clock() - started_s) from cause
        _log.debug("%s %s took %.2f s", verb, uri, self._clock() - started_s)
        return result

    def _error_for(self, cause: Exception, verb: str, uri: StoreUri, attempts: int, elapsed_s: float) -> Exception:
        """Return the error to raise for `cause`."""
        if isinstance(cause, ClientError) and is_refusal(cause):
            return self._refusal_for(cause, verb, uri)
        if isinstance(cause, MISCONFIGURED):
            return _unrequested(cause, verb, uri)
        if is_corrupt(cause):
            return DigestMismatch(f"{verb} {uri}: checksum mismatch, {attempts} attempts", hint="check the network path")
        if isinstance(cause, ClientError) and status(cause) == 404 and code(cause) != "NoSuchBucket" and verb == "get":
            return ObjectMissing(f"{uri} does not exist")
        if isinstance(cause, ClientError) or is_temporary(cause) or is_unreadable(cause):
            tries = f"{attempts} time{'s' if attempts > 1 else ''} in {elapsed_s:.0f} s"
            return StorageUnavailable(
                f"{verb} {uri} failed {tries} (last: {describe_fault(cause)})",
                hint="check the path to the store: its answers are not those of an S3 server"
                if is_unreadable(cause)
                else "run it again when object storage is back: finished work is kept",
            )
        return cause


def _unrequested(cause: Exception, verb: str, uri: StoreUri) -> BadInput:
    """Return the error for a request that was never sent."""
    if isinstance(cause, NoCredentialsError):
        return BadInput("no S3 credentials are configured", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return BadInput(f"{verb} {uri} cannot be requested: {first_line(cause)}", hint="check the AWS_ variables and the name")


def _read(response: "GetObjectOutputTypeDef", *, limit: int) -> bytes:
    """Return the first `limit` bytes of a response, or all of it if it is shorter."""
    size_bytes = response.get("ContentLength")  # a response in chunks has none
    most_bytes, chunks, have_bytes = limit if size_bytes is None else min(size_bytes, limit), [], 0
    with response["Body"] as body:
        while have_bytes < most_bytes and (chunk := body.read(min(CHUNK_BYTES, most_bytes - have_bytes))):
            chunks.append(chunk)
            have_bytes += len(chunk)
    if size_bytes is not None and have_bytes < most_bytes:
        raise Incomplete(f"{have_bytes} of {most_bytes} bytes")
    return b"".join(chunks)


def _listed(bucket: str, item: Mapping[str, Any]) -> StoredObject:
    """Return an entry of a listing."""
    if "Key" not in item or "Size" not in item:
        raise Incomplete("an entry of the listing has no key or no size")
    return StoredObject(StoreUri(bucket, item["Key"]), item["Size"], _stamp(item))


def _stamp(facts: Mapping[str, Any]) -> str:
    """Return the ETag and the time of an object, as far as the store reports them."""
    at = facts.get("LastModified")
    return f"{facts.get('ETag', '')} {at.isoformat() if at is not None else ''}"
