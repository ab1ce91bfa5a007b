"""Delivers a training's journal to the MLflow run of its run key."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from components.errors import TrackingUnavailable
from components.settings import Settings
from components.tracking.client import Tracking
from components.tracking.image_names import image_marker, is_image_logged
from components.tracking.journal import Attachment, LoggedImage
from components.tracking.metric_points import Point
from components.tracking.request_limits import limit_requests


class MlflowDestination:
    """The MLflow run of one training, created by its launcher; requests have short time-outs."""

    def __init__(self, settings: Settings, run_key: str) -> None:
        limit_requests(timeout_s=10, max_retries=1)
        self._tracking = Tracking(settings)
        self._run_key = run_key
        self._logged_steps: dict[str, set[int]] = {}
        self._files: dict[str, set[str]] = {}

    @cached_property
    def run_id(self) -> str:
        run = self._tracking.training_run(self._run_key)
        if run is None:
            raise TrackingUnavailable(f"MLflow has no run for run key {self._run_key} yet")
        return str(run.info.run_id)

    def logged_steps(self, key: str) -> set[int]:
        if key not in self._logged_steps:
            self._logged_steps[key] = self._tracking.logged_steps(self.run_id, key)
        return self._logged_steps[key]

    def log_metrics(self, points: list[Point]) -> None:
        self._tracking.log_metrics(self.run_id, points)
        for point in points:
            self._logged_steps[point.key].add(point.step)

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> bool:
        if is_image_logged(image.key, image.step, self._files_in("images")):
            return False
        with self._remember_upload("images", image_marker(image.key, image.step)):
            self._tracking.log_image(self.run_id, pixels, key=image.key, step=image.step, timestamp_ms=image.timestamp_ms)
        return True

    @contextmanager
    def _remember_upload(self, folder: str, path: str) -> Iterator[None]:
        """Remember that the block uploaded an artifact; after an error ask MLflow again, because only the response may have been lost."""
        try:
            yield
        except BaseException:
            self._files.clear()
            raise
        self._files_in(folder).add(path)

    def _files_in(self, folder: str) -> set[str]:
        """Return the run's artifacts in `folder` when it was first asked for: only this destination logs to it."""
        if folder not in self._files:
            self._files[folder] = set(self._tracking.artifact_paths(self.run_id, folder))
        return self._files[folder]

    def log_file(self, attachment: Attachment, path: Path) -> bool:
        folder, name = attachment.artifact.rsplit("/", 1)
        if attachment.artifact in self._files_in(folder):
            return False
        with (
            self._remember_upload(folder, attachment.artifact),
            tempfile.TemporaryDirectory(prefix="celebdit-attachment-") as local,
        ):
            self._tracking.log_artifact(self.run_id, Path(shutil.copy(path, Path(local) / name)), folder)
        return True
