"""Probes what a store supports: addressing style, how uploads are verified, conditional writes.

Promises: deletes what it writes; a store that refuses is bad input with the server's error code; nothing else in the project depends on a
capability that may be missing.
"""

import uuid
from dataclasses import dataclass

from botocore.exceptions import ClientError

from components.errors import BadInput, CelebditError, DataRefused
from components.storage.faults import refusal, status
from components.storage.store import ObjectStore
from components.storage.upload import UploadCheck
from components.storage.uri import StoreUri

ADDRESSING = "AWS_S3_ADDRESSING_STYLE"
_DATA = b"celebdit probe"


@dataclass(frozen=True)
class Capabilities:
    """What a store supports."""

    addressing: str
    upload_check: UploadCheck
    conditional_writes: bool


def probe(store: ObjectStore, prefix: StoreUri) -> Capabilities:
    """Write, read, list and delete one small object below `prefix`; if the store refuses, try the other addressing style.

    Raises:
        BadInput: if the store refuses: wrong credentials, bucket, permissions or addressing style.
        StorageUnavailable: if it does not respond.
    """
    try:
        return _try(store, prefix)
    except CelebditError as error:
        code = refusal(error)
        if code is None:
            raise
        other = store.with_other_addressing()
        if _works(other, prefix):
            raise BadInput(
                f"object storage refuses {store.addressing}-style addresses ({code})", hint=f"set {ADDRESSING}={other.addressing}"
            ) from error
        raise BadInput(
            f"object storage refuses {prefix}: {code}",
            hint="check the bucket's name, the credentials (AWS_ACCESS_KEY_ID, ...) and the permissions to put, get, list and delete",
        ) from error


def _try(store: ObjectStore, prefix: StoreUri) -> Capabilities:
    uri = prefix / "probe" / uuid.uuid4().hex
    store.put_bytes(uri, _DATA)
    try:
        if store.get_bytes(uri) != _DATA:
            raise DataRefused(f"{uri} was written but other bytes are read", hint="use a store with read-after-write consistency")
        if uri not in [item.uri for item in store.list(prefix / "probe")]:
            raise DataRefused(f"{uri} was written but is not listed", hint="use a store with read-after-write consistency")
        conditional = _supports_conditions(store, uri)
    finally:
        store.delete(uri)
    return Capabilities(addressing=store.addressing, upload_check=store.upload_check(uri), conditional_writes=conditional)


def _supports_conditions(store: ObjectStore, uri: StoreUri) -> bool:
    try:
        store.client.put_object(Bucket=uri.bucket, Key=uri.key, Body=_DATA, IfNoneMatch="*")
    except ClientError as error:
        return status(error) == 412
    return False


def _works(store: ObjectStore, prefix: StoreUri) -> bool:
    try:
        _try(store, prefix)
    except CelebditError:
        return False
    return True
