"""Files of versions in MLflow's artifact store: upload, listing and download. Verifies nothing; `version_store.py` does.

Promises: what was uploaded is never overwritten, because each content has a folder of its own below its logged model; a listing looks into
the folders alone that are asked for, so that no version can make it endless.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from components.errors import DataRefused, TrackingCallMissing, TrackingRefused, first_line
from components.tracking.client import Tracking

__all__ = ["ModelVersion", "VersionArtifacts"]


class VersionArtifacts:
    """The artifact store behind one MLflow server."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._client = tracking.client
        self._uri = tracking.settings.mlflow_uri

    def upload(self, folder: Path, *, model_id: str, name: str) -> str:
        """Upload the files in `folder` below `name` of a logged model and return where they are, as the source of a version."""
        with self._translate_errors():
            self._client.log_model_artifacts(model_id, str(folder), name)
            self._client.finalize_logged_model(model_id, "READY")
            return f"{self._client.get_logged_model(model_id).artifact_location}/{name}"

    def sizes(self, version: ModelVersion, folders: Collection[str]) -> dict[str, int | None]:
        """Return path and size of the files of a version; a folder that is not in `folders` counts as one file of unknown size."""
        repository = self._repository(version)
        sizes: dict[str, int | None] = {}
        with self._translate_errors():
            for folder in sorted({"", *folders}):
                for entry in repository.list_artifacts(folder or None):
                    if not entry.is_dir:
                        sizes[entry.path] = entry.file_size
                    elif entry.path not in folders:
                        sizes[f"{entry.path}/"] = None
        return sizes

    def download(self, version: ModelVersion, target: Path, *, below: str = "") -> None:
        """Download the files of a version, or the folder `below` of them, into the folder `target`.

        Raises:
            DataRefused: if they cannot be downloaded.
        """
        target.mkdir(parents=True, exist_ok=True)
        try:
            with self._translate_errors():
                self._repository(version).download_artifacts(below, str(target))
        except TrackingCallMissing:
            raise
        except TrackingRefused as error:
            raise DataRefused(
                f"the files of version {version.version} of {version.name!r} cannot be downloaded: {first_line(error)}",
                hint="check MLflow's artifact store",
            ) from error

    def _repository(self, version: ModelVersion) -> ArtifactRepository:
        with self._translate_errors():
            uri = self._client.get_model_version_download_uri(version.name, str(version.version))
            return get_artifact_repository(uri, tracking_uri=self._uri)

    def _translate_errors(self) -> AbstractContextManager[None]:
        return self._tracking.translate_errors()
