"""Where a training's journal goes: the MLflow run of its run key."""

import os
from functools import cached_property

import numpy as np

from components.journal import Picture
from components.settings import Settings
from components.tracking import Point, Tracking


class MlflowDestination:
    """The MLflow run of one training, found or made when it is first needed, with short time-outs."""

    def __init__(self, settings: Settings, run_key: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._tracking = Tracking(settings)
        self._run_key = run_key
        self._seen: dict[str, set[int]] = {}

    @cached_property
    def run_id(self) -> str:
        return str(self._tracking.step_run("train", run_key=self._run_key, name=f"train-{self._run_key}").info.run_id)

    def seen(self, key: str) -> set[int]:
        if key not in self._seen:
            self._seen[key] = self._tracking.logged_steps(self.run_id, key)
        return self._seen[key]

    def send(self, points: list[Point]) -> None:
        self._tracking.metrics(self.run_id, points)
        for point in points:
            self._seen[point.key].add(point.step)

    def show(self, picture: Picture, pixels: np.ndarray) -> None:
        self._tracking.image(self.run_id, pixels, key=picture.key, step=picture.step, timestamp_ms=picture.timestamp_ms)
