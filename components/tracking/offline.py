"""MLflow tracking client for the embedded server's database while that server does not run: artifacts are read where it keeps them.

Promises: reads what the server would return. Artifacts are written by the server alone.
"""

from collections.abc import Callable
from urllib.parse import urlsplit

from components.errors import TrackingRefused
from components.settings import Settings
from components.storage import ObjectMissing, ObjectStore, StoreUri
from components.tracking.client import Tracking


class OfflineTracking(Tracking):
    """MLflow's records from a database, and artifacts from `artifacts` in the object storage that `store` connects to."""

    def __init__(self, settings: Settings, store: Callable[[], ObjectStore], artifacts: StoreUri) -> None:
        super().__init__(settings)
        self._store = store
        self._artifacts = artifacts

    def artifact_paths(self, run_id: str, folder: str) -> list[str]:
        """Return the paths of a run's artifacts in `folder`, without folders below it."""
        root = self._location(run_id, "")
        paths = (item.uri.key.removeprefix(root.key) for item in self._store().list(self._location(run_id, folder)))
        return sorted(path for path in paths if path.rpartition("/")[0] == folder)

    def read_artifact(self, run_id: str, path: str) -> bytes:
        """Return the bytes of one artifact of a run.

        Raises:
            TrackingRefused: if there is none.
        """
        try:
            return self._store().get_bytes(self._location(run_id, path))
        except ObjectMissing as error:
            raise TrackingRefused(f"run {run_id} has no artifact {path}") from error

    def _location(self, run_id: str, path: str) -> StoreUri:
        # A name of MLflow's can have characters that none of ours has.
        folder = urlsplit(self.client.get_run(run_id).info.artifact_uri).path.strip("/")
        return StoreUri(self._artifacts.bucket, f"{self._artifacts.key}/{folder}/{path}")
