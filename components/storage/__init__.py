"""Object storage client.

Promises: the bytes that are read are the bytes that were written, or an error is raised; a download appears under its name only when it is
complete and verified; temporary faults are retried until a deadline, then `StorageUnavailable` reports the attempts; a key can never leave
the prefix that it is joined to; no credential is ever part of an error. Nothing relies on conditional writes: some stores ignore them. Keys
are written once; overwriting is allowed but never needed.

`store` has the client that the steps use and `client` connects it; `uri` are locations, `faults` classifies errors, `upload` and `download`
move bytes, `probe` finds out what a store supports. boto3 is imported in this package alone, and only with what needs it: it takes 0.3 s.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.storage.client import connect
    from components.storage.faults import DigestMismatch, ObjectChanged, ObjectMissing, refusal
    from components.storage.hashing import file_sha256
    from components.storage.probe import Capabilities
    from components.storage.store import ObjectStore
    from components.storage.uri import StoredObject, StoreUri

__all__ = [
    "Capabilities",
    "DigestMismatch",
    "ObjectChanged",
    "ObjectMissing",
    "ObjectStore",
    "StoreUri",
    "StoredObject",
    "connect",
    "file_sha256",
    "refusal",
]

_MODULES = {
    "Capabilities": "probe",
    "DigestMismatch": "faults",
    "ObjectChanged": "faults",
    "ObjectMissing": "faults",
    "ObjectStore": "store",
    "StoreUri": "uri",
    "StoredObject": "uri",
    "connect": "client",
    "file_sha256": "hashing",
    "refusal": "faults",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
