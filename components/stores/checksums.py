"""Digests of objects that no manifest names: pages and image grids, which are made once and shown often.

Layout: `checksums/<key of the folder below the store>.json` (see `layout.py`), outside the folder, so that a folder holds its content only.
Promises: an object that is missing, empty or has other bytes than those that were recorded is reported; one that was never recorded is
only asked to exist.
"""

import json
from collections.abc import Iterable, Mapping

from components.errors import DataRefused
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri
from components.stores.layout import StoreLayout
from model.canonical import canonical_json


def record_checksums(folder: StoreUri, sha256: Mapping[str, str], *, store: ObjectStore, layout: StoreLayout) -> None:
    """Record the digests of the objects in `folder`, by name."""
    store.put_bytes(layout.checksums(folder), canonical_json({"sha256": dict(sha256)}))


def damaged_objects(folder: StoreUri, names: Iterable[str], *, store: ObjectStore, layout: StoreLayout) -> dict[str, str]:
    """Return those of the objects `names` in `folder` that are damaged or missing, each with the reason."""
    recorded = _read_record(folder, store, layout)
    damaged = {}
    for name in names:
        try:
            if name in recorded:
                store.check(folder / name, recorded[name])
            elif not store.get_bytes(folder / name):
                damaged[name] = f"{folder / name} is empty"
        except (ObjectMissing, DigestMismatch) as problem:
            damaged[name] = problem.message
    return damaged


def _read_record(folder: StoreUri, store: ObjectStore, layout: StoreLayout) -> dict[str, str]:
    try:
        return {str(name): str(sha256) for name, sha256 in json.loads(store.get_bytes(layout.checksums(folder)))["sha256"].items()}
    except (DataRefused, ValueError, KeyError, TypeError, AttributeError):
        return {}
