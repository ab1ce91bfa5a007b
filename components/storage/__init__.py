"""The only door to object storage.

Promises: bytes that come out are the bytes that went in, or an error is raised; a download becomes visible under its name only when it is
whole and verified; faults that pass are ridden out until a deadline, then `StorageUnavailable` says what was tried; a key can never leave
the prefix that it is joined to; no credential is ever part of an error. Nothing here relies on conditional writes: some stores ignore them.
Keys are meant to be written once; overwriting is allowed but never needed.

`uri` says where an object is, `faults` what an error means, `upload` and `download` move bytes, `probe` finds out what a store can do,
`store` is what the steps use, `client` connects. boto3 is imported in this package alone.
"""

from components.storage.client import connect
from components.storage.faults import DigestMismatch, ObjectMissing, refusal
from components.storage.hashing import file_sha256
from components.storage.probe import Capabilities
from components.storage.store import ObjectStore
from components.storage.uri import StoredObject, StoreUri

__all__ = [
    "Capabilities",
    "DigestMismatch",
    "ObjectMissing",
    "ObjectStore",
    "StoreUri",
    "StoredObject",
    "connect",
    "file_sha256",
    "refusal",
]
