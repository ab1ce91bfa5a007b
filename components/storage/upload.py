"""Uploads: verified by the store where it checks Content-MD5, and by reading the object back where it does not.

Promises: memory grows neither with the size of a file nor with that of a part; a failed part is sent again alone, a corrupt one restarts
the upload; an abandoned upload is aborted, and until an upload is complete nothing is visible under its key.
"""

import hashlib
import logging
import os
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import IO, TYPE_CHECKING, Literal, TypeVar, cast

from botocore.exceptions import BotoCoreError, ClientError

from components.storage.answers import CONFLICT, CORRUPT, DENIED, LOST_UPLOAD, MISSING, REFUSED
from components.storage.faults import CORRUPT_ATTEMPTS, DigestMismatch, answer_to, status
from components.storage.hashing import content_md5
from components.storage.part import FilePart
from components.storage.uri import StoreUri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_log = logging.getLogger(__name__)
WithRetries = Callable[[str, StoreUri, Callable[[], T]], T]
UploadCheck = Literal["content-md5", "read-back"]

PART_BYTES = 8 * 2**20
PARALLEL_PARTS = 4
_MAX_PARTS = 10_000
_BAD_REQUEST = 400
_PROBE = b"celebdit probe"


class _UploadLost(Exception):
    """The store reports a checksum mismatch of a part, or has no such upload any more."""


class Uploads:
    """The uploads of one client. Safe to share between threads."""

    def __init__(self, client: "S3Client", with_retries: "WithRetries[object]") -> None:
        self._client = client
        self._with_retries = with_retries
        self._check: UploadCheck | None = None
        self._lock = Lock()

    def put(self, uri: StoreUri, data: bytes) -> None:
        """Store `data` in one request."""
        self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data, ContentMD5=content_md5([data]))

    def put_parts(self, uri: StoreUri, path: Path) -> str:
        """Store a file as parallel parts and return the sha256 of what was sent.

        Raises:
            DigestMismatch: if parts arrive corrupt, or the upload is aborted by another program, in every attempt.
        """
        for _ in range(CORRUPT_ATTEMPTS):
            # rclone 1.75 may not respond again for a part that it once received corrupt, so the upload is begun again.
            with suppress(_UploadLost):
                return self._put_parts_once(uri, path)
        raise DigestMismatch(
            f"put {uri}: checksum mismatch after upload, or aborted by others, {CORRUPT_ATTEMPTS} attempts", hint=CORRUPT.fix
        )

    def _put_parts_once(self, uri: StoreUri, path: Path) -> str:
        part_bytes = max(PART_BYTES, -(-path.stat().st_size // _MAX_PARTS))
        upload_id, abandoned = str(self._begin(uri)), Event()
        try:
            with path.open("rb") as file, ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="upload") as pool:
                try:
                    etags, sha256, size_bytes = self._send(uri, upload_id, file, part_bytes, pool, abandoned)
                except BaseException:
                    # rclone 1.75 may never respond for the other parts of an upload, so they are not retried.
                    abandoned.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            conflict = self._complete(uri, upload_id, etags, size_bytes)
            if conflict is not None:
                raise conflict
        except BaseException:
            with suppress(ClientError, BotoCoreError, OSError):  # the reason that it was abandoned matters more
                self._client.abort_multipart_upload(Bucket=uri.bucket, Key=uri.key, UploadId=upload_id)
            raise
        return sha256

    def _send(
        self, uri: StoreUri, upload_id: str, file: IO[bytes], part_bytes: int, pool: ThreadPoolExecutor, abandoned: Event
    ) -> tuple[list[str], str, int]:
        """Send a file in parts, a few at a time; return the ETags of the parts, and sha256 and size of the bytes read."""
        pending: deque[Future[str]] = deque()
        etags: list[str] = []
        digest, total_bytes = hashlib.sha256(), os.fstat(file.fileno()).st_size
        for begins_at in range(0, total_bytes, part_bytes):
            part = FilePart(file, begins_at, min(part_bytes, total_bytes - begins_at))
            for chunk in part.chunks():
                digest.update(chunk)
            pending.append(pool.submit(self._put_part, uri, upload_id, len(etags) + len(pending) + 1, part, abandoned))
            if len(pending) > PARALLEL_PARTS:
                etags.append(pending.popleft().result())
        return [*etags, *(part.result() for part in pending)], digest.hexdigest(), total_bytes

    def _begin(self, uri: StoreUri) -> object:
        return self._with_retries("put", uri, lambda: self._client.create_multipart_upload(Bucket=uri.bucket, Key=uri.key)["UploadId"])

    def _put_part(self, uri: StoreUri, upload_id: str, number: int, part: FilePart, abandoned: Event) -> str:
        where = {"Bucket": uri.bucket, "Key": uri.key, "UploadId": upload_id, "PartNumber": number}
        check = content_md5(part.chunks())

        def send() -> str:
            if abandoned.is_set():
                raise _UploadLost
            try:
                part.seek(0)
                return self._client.upload_part(**where, Body=part, ContentMD5=check)["ETag"]  # type: ignore[arg-type]
            except ClientError as error:
                if answer_to(error) in (CORRUPT, LOST_UPLOAD):
                    abandoned.set()
                    raise _UploadLost from error
                raise

        return str(self._with_retries("put", uri, send))

    def _complete(self, uri: StoreUri, upload_id: str, etags: list[str], size_bytes: int) -> ClientError | None:
        """Complete an upload, or return the error of a conflict, after which S3 wants all of it uploaded again."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]

        def complete() -> ClientError | None:
            try:
                self._client.complete_multipart_upload(
                    Bucket=uri.bucket,
                    Key=uri.key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
                )
            except ClientError as error:
                if answer_to(error) is CONFLICT:
                    return error
                # The response to a successful completion may have been lost: then the upload is gone and the object exists.
                lost = answer_to(error) in (LOST_UPLOAD, MISSING)
                if lost and self._size(uri) != size_bytes:
                    raise _UploadLost from error
                if not lost:
                    raise
            return None

        return cast("ClientError | None", self._with_retries("put", uri, complete))

    def _size(self, uri: StoreUri) -> int | None:
        try:
            return self._client.head_object(Bucket=uri.bucket, Key=uri.key)["ContentLength"]
        except ClientError:
            return None

    def check(self, near: StoreUri) -> UploadCheck:
        """Return how an upload is verified: by the store if it refuses a wrong Content-MD5, else by reading back. Probed once."""
        with self._lock:
            if self._check is None:
                self._check = "content-md5" if self._with_retries("put", near, lambda: self._refuses_wrong_md5(near)) else "read-back"
            return self._check

    def _refuses_wrong_md5(self, near: StoreUri) -> bool:
        probe = StoreUri(near.bucket, f"{near.key}.probe-{uuid.uuid4().hex[:8]}")
        try:
            self._client.put_object(Bucket=probe.bucket, Key=probe.key, Body=_PROBE, ContentMD5=content_md5([b"other bytes"]))
        except ClientError as error:
            if status(error) != _BAD_REQUEST or answer_to(error) not in (CORRUPT, REFUSED):
                raise
            return True
        try:
            self._client.delete_object(Bucket=probe.bucket, Key=probe.key)
        except ClientError as error:
            if answer_to(error) not in (DENIED, REFUSED):
                raise
            _log.debug("%s stays: it may not be deleted", probe)  # writers need no other right; preflight asks for this one
        return False
