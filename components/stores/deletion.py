"""Delete objects so that whatever is left when it is interrupted is complete, or is not read.

Promises: what was written last, and makes the objects beside it count, is deleted before all others; a missing object is no error.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from components.storage import ObjectStore, StoreUri

_WRITTEN_LAST = re.compile(r"COMMIT\.json|report\.json|dataset\.json|reference\.json|images-[0-9]+-[0-9]+\.json")
_PARALLEL = 16


def is_written_last(name: str) -> bool:
    """Return whether the object with this name makes those beside it count, in any folder of the layout (`layout.py`)."""
    return _WRITTEN_LAST.fullmatch(name) is not None


def delete_objects(store: ObjectStore, uris: Sequence[StoreUri]) -> None:
    """Delete the objects, some of them at once."""
    last = [uri for uri in uris if is_written_last(uri.name)]
    others = [uri for uri in uris if not is_written_last(uri.name)]
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="delete") as pool:
        try:
            for group in (last, others):
                for _ in pool.map(store.delete, group):
                    pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
