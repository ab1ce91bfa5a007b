"""Probes what a store supports and allows, with every operation that the steps use.

Promises: deletes what it writes; a store that refuses is bad input with the server's error code, the right that is missing and the next
action of `answers.py`; nothing else in the project depends on a capability that may be missing.
"""

import uuid
from dataclasses import dataclass

from botocore.exceptions import ClientError

from components.errors import BadInput, CelebditError, DataRefused
from components.storage.addressing import ADDRESSING
from components.storage.answers import OTHER_SERVER
from components.storage.bucket import BucketRules, bucket_rules
from components.storage.faults import DigestMismatch, StorageRefused, answer_to, is_temporary, refusal, status
from components.storage.hashing import content_md5
from components.storage.store import ObjectStore
from components.storage.unfinished_uploads import begin_upload, unfinished_uploads
from components.storage.upload import UploadCheck
from components.storage.uri import StoreUri

_DATA = b"celebdit probe"
_CONDITIONAL_ATTEMPTS = 3
_CONSISTENT = "use a store with read-after-write consistency"


@dataclass(frozen=True)
class Capabilities:
    """What a store supports."""

    addressing: str
    upload_check: UploadCheck
    conditional_writes: bool
    """Whether it refuses to write an object again that exists, when it is asked to; nothing here needs it."""
    ranges: bool
    """Whether it answers with the part of an object that is asked for; the client does without."""
    forbids_missing_keys: bool
    """Whether it answers 403 for a key that is missing; a listing then tells which it is."""
    lists_uploads: bool
    """Whether the parts of killed uploads can be found."""
    bucket: BucketRules

    def describe(self) -> str:
        """Return the capabilities as a text."""
        uploads = "checked by the store" if self.upload_check == "content-md5" else "read back"
        conditions = "honoured" if self.conditional_writes else "ignored or not supported (not needed)"
        parts = [f"{self.addressing}-style", f"uploads are {uploads}", f"conditional writes are {conditions}"]
        parts += ["missing keys are answered with 403, and looked up in listings"] if self.forbids_missing_keys else []
        parts += [] if self.lists_uploads else ["incomplete uploads cannot be listed, so they stay (s3:ListBucketMultipartUploads)"]
        return "; ".join(parts)


def probe(store: ObjectStore, prefix: StoreUri) -> Capabilities:
    """Write, read, list and delete small objects below `prefix`, in parts too; if the store refuses, try the other addressing style.

    Raises:
        BadInput: if the store refuses: wrong credentials, bucket, region, permissions or addressing style.
        StorageUnavailable: if it does not respond.
    """
    try:
        return _try(store, prefix)
    except DigestMismatch as error:
        if isinstance(error.__cause__, ClientError):  # the store's own judgement of an upload
            raise
        raise BadInput(f"object storage does not return what was written to {prefix}", hint=OTHER_SERVER.fix) from error
    except StorageRefused as error:
        code = refusal(error)
        if code is None:
            raise
        if error.answer.may_be_addressing and _works(other := store.with_other_addressing(), prefix):
            raise BadInput(
                f"object storage refuses {store.addressing}-style addresses ({code})", hint=f"set {ADDRESSING}={other.addressing}"
            ) from error
        call = error.__cause__.operation_name if isinstance(error.__cause__, ClientError) else ""
        detail = f": {error.detail}" if error.detail else f" ({call})"
        raise StorageRefused(f"object storage refuses {prefix}: {code}{detail}", hint=error.hint, answer=error.answer) from error.__cause__


def _try(store: ObjectStore, prefix: StoreUri) -> Capabilities:
    uri = prefix / "probe" / uuid.uuid4().hex
    store.put_bytes(uri, _DATA)
    try:
        described = store.describe(uri)
        if (described.is_size_known and described.size_bytes != len(_DATA)) or store.get_bytes(uri) != _DATA:
            raise DataRefused(f"{uri} was written but other bytes are read", hint=_CONSISTENT)
        if uri not in [item.uri for item in store.list(prefix / "probe")]:
            raise DataRefused(f"{uri} was written but is not listed", hint=_CONSISTENT)
        ranges = _supports_ranges(store, uri)
        conditional = _supports_conditions(store, uri)
        lists_uploads = _upload_in_parts(store, prefix / "probe" / uuid.uuid4().hex)
    finally:
        store.delete(uri)
    return Capabilities(
        addressing=store.addressing,
        upload_check=store.upload_check(uri),
        conditional_writes=conditional,
        ranges=ranges,
        forbids_missing_keys=_forbids_missing_keys(store, prefix / "probe" / uuid.uuid4().hex),
        lists_uploads=lists_uploads,
        bucket=bucket_rules(store, prefix),
    )


def _supports_ranges(store: ObjectStore, uri: StoreUri) -> bool:
    response = store.call("get", uri, lambda: store.client.get_object(Bucket=uri.bucket, Key=uri.key, Range="bytes=9-"))
    with response["Body"] as body:
        data = body.read()
    if data not in (_DATA, _DATA[9:]):
        raise DataRefused(f"{uri} was written but other bytes are read in a range", hint="use a store that answers ranges as S3 does")
    return data == _DATA[9:]


def _supports_conditions(store: ObjectStore, uri: StoreUri) -> bool:
    """Write an object again on the condition that there is none; a store that fails at this alone does not support it.

    Each failure is followed by a write without the condition, which waits for a store that fails at everything.
    """
    for _ in range(_CONDITIONAL_ATTEMPTS):
        try:
            store.client.put_object(Bucket=uri.bucket, Key=uri.key, Body=_DATA, ContentMD5=content_md5([_DATA]), IfNoneMatch="*")
        except Exception as error:
            if answer_to(error) is None:
                raise
            if not is_temporary(error):
                return isinstance(error, ClientError) and status(error) in (409, 412)
        else:
            return False
        store.put_bytes(uri, _DATA)
    return False


def _forbids_missing_keys(store: ObjectStore, missing: StoreUri) -> bool:
    """Ask for a key that is missing, as steps do, and return whether the plain answer is 403."""
    if store.exists(missing):
        raise DataRefused(f"{missing} was never written, and is there", hint="use a store that answers as S3 does")

    def plain_status() -> int:
        try:
            store.client.get_object(Bucket=missing.bucket, Key=missing.key)["Body"].close()
        except ClientError as error:
            if is_temporary(error):
                raise
            return status(error)
        return 200

    return store.call("get", missing, plain_status) == 403


def _upload_in_parts(store: ObjectStore, uri: StoreUri) -> bool:
    """Upload two parts and abort; return whether the upload could be found meanwhile."""
    upload = begin_upload(store, uri)
    try:
        for number in (1, 2):
            store.call("put", uri, lambda number=number: upload.put_part(store.client, number, _DATA))  # type: ignore[misc]
        listed = unfinished_uploads(store, uri)
    finally:
        upload.abort(store)
    return listed is not None and upload.id in [item.id for item in listed]


def _works(store: ObjectStore, prefix: StoreUri) -> bool:
    try:
        _try(store, prefix)
    except CelebditError:
        return False
    return True
