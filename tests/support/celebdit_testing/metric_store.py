"""A destination of a journal in memory."""

from pathlib import Path

import numpy as np

from components.tracking.journal import Attachment, LoggedImage
from components.tracking.metric_points import Point


class MetricStore:
    """A metric store that can be unavailable, and that keeps every point it receives."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.images: list[tuple[str, int]] = []
        self.files: dict[str, str] = {}
        self.unavailable = False
        self.fails_after_sending = False

    def logged_steps(self, key: str) -> set[int]:
        self._answer()
        return {point.step for point in self.points if point.key == key}

    def log_metrics(self, points: list[Point]) -> None:
        self._answer()
        self.points += points
        if self.fails_after_sending:
            raise ConnectionError("the answer was lost")

    def log_image(self, image: LoggedImage, pixels: np.ndarray) -> None:
        self._answer()
        if (image.key, image.step) not in self.images:
            self.images.append((image.key, image.step))

    def log_file(self, attachment: Attachment, path: Path) -> None:
        self._answer()
        self.files[attachment.artifact] = path.read_text()

    def _answer(self) -> None:
        if self.unavailable:
            raise ConnectionError("unavailable")
