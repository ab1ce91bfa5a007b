"""Delivers a training's journal to the MLflow run of its run key."""

import shutil
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np

from components.errors import TrackingUnavailable
from components.settings import Settings
from components.tracking.client import Tracking
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

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> None:
        self._tracking.log_image(self.run_id, pixels, key=image.key, step=image.step, timestamp_ms=image.timestamp_ms)

    def log_file(self, attachment: Attachment, path: Path) -> None:
        folder, name = attachment.artifact.rsplit("/", 1)
        with tempfile.TemporaryDirectory(prefix="celebdit-attachment-") as local:
            self._tracking.log_artifact(self.run_id, Path(shutil.copy(path, Path(local) / name)), folder)
