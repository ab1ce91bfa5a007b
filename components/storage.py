"""The only door to object storage.

Promises: bytes that come out are the bytes that went in, or an error is raised (sha256, end to end); a download becomes visible under its
name only when it is verified; faults that pass are ridden out until a deadline, then `StorageUnavailable` says what was tried; a key can
never leave the prefix that it is joined to. Nothing here relies on conditional writes: some stores ignore them. Keys are meant to be
written once; overwriting is allowed but never needed.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError, NoCredentialsError, ResponseStreamingError

from components.errors import BadInput, CelebditError, DataRefused, StorageUnavailable
from components.retry import RetryPolicy, retry

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_PART_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**20
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=@+-]*")
_DIGEST_TRIES = 3
_TRANSFER = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)


class ObjectMissing(DataRefused):
    """There is no object under this key."""


class DigestMismatch(DataRefused):
    """The bytes of an object are not those that its manifest names."""


@dataclass(frozen=True)
class StoreUri:
    """An S3 location. `/` joins one key segment after checking that it stays below."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "StoreUri":
        """Read `s3://bucket/key`.

        Raises:
            BadInput: if it is not such a location, or a part of it could escape a prefix.
        """
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", text)
        if match is None:
            raise BadInput(f"{text!r} is not an S3 location", hint="write s3://bucket/key, the bucket in lower case")
        uri = cls(match[1], "")
        for segment in (match[2] or "").strip("/").split("/") if match[2] else ():
            uri = uri / segment
        return uri

    def __truediv__(self, segment: str) -> "StoreUri":
        if not _SEGMENT.fullmatch(segment):
            raise BadInput(
                f"{segment!r} cannot be part of an object key", hint="use letters, digits and . _ = @ + -, starting with a letter or digit"
            )
        return StoreUri(self.bucket, f"{self.key}/{segment}" if self.key else segment)

    def join(self, path: str) -> "StoreUri":
        """Append several segments, given as one path with slashes."""
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
        return self.key[len(prefix.key) + 1 :] if prefix.key else self.key

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")


@dataclass(frozen=True)
class StoredObject:
    """What a listing tells of an object."""

    uri: StoreUri
    size_bytes: int


@dataclass(frozen=True)
class Capabilities:
    """What the start-up probe found out about the store."""

    addressing: str
    conditional_writes: bool


class _HashingReader:
    """A response body that counts and hashes what is read from it."""

    def __init__(self, body: IO[bytes]) -> None:
        self._body = body
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def read(self, amount: int) -> bytes:
        data = self._body.read(amount)
        self.sha256.update(data)
        self.size_bytes += len(data)
        return data


class ObjectStore:
    """Objects below one bucket, read and written with verification and patience. Safe to share between threads."""

    def __init__(
        self,
        client: "S3Client",
        *,
        deadline_s: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._policy = RetryPolicy(deadline_s=deadline_s)
        self._sleep = sleep
        self._clock = clock
        self.retries = 0

    def put_bytes(self, uri: StoreUri, data: bytes) -> str:
        """Store `data` under `uri` and return its sha256, after reading it back."""
        digest = hashlib.sha256(data).hexdigest()

        def upload() -> None:
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data)
            self._check_read_back(uri, digest)

        self._patiently(f"put {uri}", upload)
        return digest

    def put_file(self, uri: StoreUri, path: Path) -> str:
        """Store the file at `path` under `uri`, in parallel parts, and return its sha256, after reading it back."""
        digest = file_sha256(path)

        def upload() -> None:
            self._client.upload_file(str(path), uri.bucket, uri.key, Config=_TRANSFER)
            self._check_read_back(uri, digest)

        self._patiently(f"put {uri}", upload)
        return digest

    def get_bytes(self, uri: StoreUri, *, sha256: str | None = None, max_bytes: int = 64 * 2**20) -> bytes:
        """Return the object's bytes, checked against `sha256` if it is given.

        Raises:
            ObjectMissing: if there is none. DigestMismatch: if it is another. DataRefused: if it is larger than `max_bytes`.
        """

        def download() -> bytes:
            with self._opened(uri) as (body, size_bytes):
                if size_bytes > max_bytes:
                    raise DataRefused(f"{uri} has {size_bytes} bytes, at most {max_bytes} are expected")
                chunks = []
                while chunk := body.read(_CHUNK_BYTES):
                    chunks.append(chunk)
                _check(uri, body, size_bytes, sha256)
                return b"".join(chunks)

        return self._patiently(f"get {uri}", download)

    def get_file(self, uri: StoreUri, path: Path, *, sha256: str | None = None) -> str:
        """Download to `path`, which appears only when the bytes are complete and fit `sha256`; return the sha256 found."""
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")

        def download() -> str:
            with self._opened(uri) as (body, size_bytes), partial.open("wb") as file:
                while chunk := body.read(_CHUNK_BYTES):
                    file.write(chunk)
                return _check(uri, body, size_bytes, sha256)

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = self._patiently(f"get {uri}", download)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return found

    def exists(self, uri: StoreUri) -> bool:
        """Return whether there is an object under exactly this key."""

        def head() -> bool:
            try:
                self._client.head_object(Bucket=uri.bucket, Key=uri.key)
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
            return True

        return self._patiently(f"look for {uri}", head)

    def list(self, prefix: StoreUri) -> list[StoredObject]:
        """Return all objects below `prefix`, sorted by key."""

        def listing() -> list[StoredObject]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=prefix.bucket, Prefix=f"{prefix.key}/" if prefix.key else ""
            )
            found = [(item["Key"], item["Size"]) for page in pages for item in page.get("Contents", [])]
            return [StoredObject(StoreUri(prefix.bucket, key), size) for key, size in sorted(found)]

        return self._patiently(f"list {prefix}", listing)

    def delete(self, uri: StoreUri) -> None:
        """Remove an object; a missing one is no error."""
        self._patiently(f"delete {uri}", lambda: self._client.delete_object(Bucket=uri.bucket, Key=uri.key))

    def make_bucket(self, bucket: str) -> None:
        """Create `bucket` unless it is there."""

        def create() -> None:
            try:
                self._client.create_bucket(Bucket=bucket)
            except ClientError as error:
                if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

        self._patiently(f"create bucket {bucket}", create)

    def probe(self, prefix: StoreUri) -> Capabilities:
        """Write, read, list and delete one small object below `prefix`, and find out what the store can do.

        Raises:
            BadInput: if the store answers but refuses: wrong credentials, no such bucket, no permission.
            StorageUnavailable: if it does not answer.
        """
        uri = prefix / "probe" / uuid.uuid4().hex
        data = b"celebdit probe"
        try:
            self.put_bytes(uri, data)
            if uri not in [item.uri for item in self.list(prefix / "probe")]:
                raise DataRefused(f"{uri} was written but is not listed", hint="use a store with read-after-write consistency")
            conditional = self._honours_conditions(uri, data)
            self.delete(uri)
        except StorageUnavailable as unavailable:
            if isinstance(unavailable.__cause__, ClientError) and _status(unavailable.__cause__) in (400, 401, 403, 404):
                raise BadInput(
                    f"object storage refuses {prefix}: {_code(unavailable.__cause__)}",
                    hint="check the bucket's name, the credentials (AWS_ACCESS_KEY_ID, ...) and the rights to put, get, list and delete",
                ) from unavailable
            raise
        style = (getattr(self._client.meta.config, "s3", None) or {}).get("addressing_style", "auto")
        return Capabilities(addressing=str(style), conditional_writes=conditional)

    def _honours_conditions(self, uri: StoreUri, data: bytes) -> bool:
        try:
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            return _status(error) == 412
        return False

    @contextmanager
    def _opened(self, uri: StoreUri) -> Iterator[tuple[_HashingReader, int]]:
        response = self._client.get_object(Bucket=uri.bucket, Key=uri.key)
        with response["Body"] as body:
            yield _HashingReader(cast(IO[bytes], body)), response["ContentLength"]

    def _check_read_back(self, uri: StoreUri, digest: str) -> None:
        with self._opened(uri) as (body, size_bytes):
            while body.read(_CHUNK_BYTES):
                pass
            _check(uri, body, size_bytes, digest)

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        attempts, mismatches, started_s = 0, 0, self._clock()

        def counted() -> T:
            nonlocal attempts
            attempts += 1
            return call()

        def temporary(error: Exception) -> bool:
            nonlocal mismatches
            if isinstance(error, DigestMismatch):
                mismatches += 1
                return mismatches < _DIGEST_TRIES
            return _is_temporary(error)

        def noticed(attempt: int, error: Exception) -> None:
            self.retries += 1

        try:
            return retry(counted, policy=self._policy, is_temporary=temporary, on_retry=noticed, clock=self._clock, sleep=self._sleep)
        except CelebditError:
            raise
        except NoCredentialsError as cause:
            raise BadInput("no S3 credentials were found", hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from cause
        except ClientError as cause:
            if _status(cause) == 404 and _code(cause) != "NoSuchBucket" and what.startswith("get"):
                raise ObjectMissing(f"{what.removeprefix('get ')} does not exist") from cause
            raise self._unavailable(what, attempts, started_s, f"{_status(cause)} {_code(cause)}") from cause
        except (BotoCoreError, OSError) as cause:
            if isinstance(cause, OSError) and cause.filename is not None:
                raise
            raise self._unavailable(what, attempts, started_s, type(cause).__name__) from cause

    def _unavailable(self, what: str, attempts: int, started_s: float, last: str) -> StorageUnavailable:
        elapsed_s = self._clock() - started_s
        tries = f"{attempts} time{'s' if attempts > 1 else ''} in {elapsed_s:.0f} s"
        return StorageUnavailable(
            f"{what} failed {tries} (last: {last})", hint="run it again when object storage is back: finished work is kept"
        )


def connect(endpoint: str | None, *, deadline_s: float = 300.0) -> ObjectStore:
    """Return a store client for `endpoint` (None: AWS), with credentials from the environment.

    Checksums beyond what an operation requires are left out, because many S3-compatible stores reject them (boto3 >= 1.36 adds them).
    """
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint and _is_single_host(endpoint) else "auto"},
        retries={"mode": "standard", "max_attempts": 3},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    return ObjectStore(client, deadline_s=deadline_s)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_single_host(endpoint: str) -> bool:
    """Return whether buckets cannot be subdomains of the endpoint's host: an IP address or a name without dots or of a cluster service."""
    host = urlsplit(endpoint).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return "." not in host or ".svc" in host or host.endswith(".local")
    return True


def _check(uri: StoreUri, body: _HashingReader, size_bytes: int, sha256: str | None) -> str:
    found = body.sha256.hexdigest()
    if body.size_bytes != size_bytes:
        raise DigestMismatch(f"{uri}: {body.size_bytes} of {size_bytes} bytes arrived")
    if sha256 is not None and found != sha256:
        raise DigestMismatch(
            f"{uri} has sha256 {found}, expected {sha256}",
            hint="the object was changed or damaged: delete it and run the step that made it again",
        )
    return found


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return (
            _status(error) >= 500
            or _status(error) in (408, 429)
            or _code(error) in ("SlowDown", "RequestTimeout", "ExpiredToken", "RequestTimeTooSkewed")
        )
    if isinstance(error, NoCredentialsError | BadInput | DataRefused):
        return False
    if isinstance(error, FlexibleChecksumError | ResponseStreamingError):
        return True
    return isinstance(error, BotoCoreError) or (isinstance(error, OSError) and error.filename is None)
