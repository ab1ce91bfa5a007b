"""Says that a versioned bucket keeps what retention deletes."""

from collections.abc import Callable

from components.reports.plural import plural
from components.storage import ObjectStore
from components.storage.bucket import is_versioned


class VersionsReport:
    """Warns once for each store of checkpoints."""

    def __init__(self, store: ObjectStore, bucket: str, warn: Callable[[str], None]) -> None:
        self._store = store
        self._bucket = bucket
        self._warn = warn
        self._is_done = False

    def after_deleting(self, num_checkpoints: int) -> None:
        """Say that the bytes of the deleted checkpoints stay, if the bucket keeps versions and it was not said before."""
        if num_checkpoints and not self._is_done:
            self._is_done = True
            if is_versioned(self._store, self._bucket):
                self._warn(
                    f"bucket {self._bucket} keeps versions: the bytes of {plural(num_checkpoints, 'deleted checkpoint')} stay stored, "
                    "as will those of others, until a lifecycle rule removes noncurrent versions"
                )
