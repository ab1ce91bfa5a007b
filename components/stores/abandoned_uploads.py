"""Aborts the uploads in parts that killed attempts left: no listing shows their parts, which are paid for until someone removes them.

Promises: an upload of this attempt or of a later one is never touched. An earlier attempt that lives on after all, on another machine,
loses at most the uploads that were under way when this attempt first looked, and begins them again (`storage/upload.py`). The same rule
holds for checkpoints without a commit (`checkpoints.py`). A store that
does not list uploads, or does not let them be aborted, is no error: preflight says so.
"""

import logging
from contextlib import suppress
from datetime import timedelta

from components.errors import CelebditError
from components.storage import ObjectStore, StoreUri
from components.storage.unfinished_uploads import UnfinishedUpload, unfinished_uploads
from components.stores.checkpoint_names import checkpoint_folder, is_abandoned

_log = logging.getLogger(__name__)
_ABANDONED = timedelta(days=1)
"""Age of an upload whose key names no attempt: no upload of a step takes as long."""


class AbandonedUploads:
    """The uploads of earlier attempts below `home`, where a key is `.../<attempt>/<file>`."""

    def __init__(self, store: ObjectStore, home: StoreUri) -> None:
        self._store = store
        self._home = home
        self._first_ids: set[str] | None = None

    def abort(self, *, before: str, ended: str | None = None) -> int:
        """Abort the uploads of attempts before `before`, and of `ended`, that were under way at the first call; return their number.

        Those that began later belong to an attempt that lives.
        """
        uploads = unfinished_uploads(self._store, self._home) or []
        abandoned = [upload for upload in uploads if is_abandoned(checkpoint_folder(upload.uri), before=before, ended=ended)]
        if self._first_ids is None:
            self._first_ids = {upload.id for upload in abandoned}
        return _abort(self._store, [upload for upload in abandoned if upload.id in self._first_ids])


def abort_old_uploads(store: ObjectStore, prefix: StoreUri) -> int:
    """Abort the uploads below `prefix` that began more than a day ago; return how many there were."""
    uploads = unfinished_uploads(store, prefix) or []
    return _abort(store, [upload for upload in uploads if upload.age is not None and upload.age > _ABANDONED])


def _abort(store: ObjectStore, uploads: list[UnfinishedUpload]) -> int:
    aborted = 0
    for upload in uploads:
        with suppress(CelebditError):
            upload.abort(store)
            aborted += 1
    if aborted:
        _log.info("incomplete uploads of earlier attempts that were aborted: %d", aborted)
    return aborted
