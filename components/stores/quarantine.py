"""Quarantine: where damaged objects are moved, so that their place is free and nothing is silently deleted.

Layout: `quarantine/<time>-<random>/<key below the store>` and `REASON.json` (see `layout.py`). Promises: nothing in quarantine is read by a
step; a missing object needs no place there.
"""

import time
import uuid
from collections.abc import Iterable

from components.errors import shorten
from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.stores.layout import StoreLayout
from model.canonical import canonical_json

REASON_FILE = "REASON.json"


def quarantine(objects: Iterable[StoreUri], reason: str, *, store: ObjectStore, layout: StoreLayout) -> StoreUri | None:
    """Move `objects` below one folder of the quarantine and return it, or None if none of them exists any more."""
    folder = layout.quarantine / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    moved = []
    for uri in objects:
        below = uri.relative_to(layout.root)
        try:
            store.copy(uri, StoreUri(folder.bucket, f"{folder.key}/{below}"))
        except ObjectMissing:
            continue
        store.delete(uri)
        moved.append(below)
    if not moved:
        return None
    store.put_bytes(folder / REASON_FILE, canonical_json({"reason": shorten(reason, max_characters=1000), "objects": moved}))
    return folder
