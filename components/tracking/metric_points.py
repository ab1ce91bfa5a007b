"""Metric values to upload to MLflow. Imports no MLflow, so that ranks that do not log need not import it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    step: int
    value: float
    timestamp_ms: int


def missing_points(points: Iterable[Point], logged: Mapping[str, set[int]]) -> list[Point]:
    """Return the points whose (key, step) is not in `logged`; of several with the same (key, step) the first."""
    identities: set[tuple[str, int]] = set()
    missing = []
    for point in points:
        identity = (point.key, point.step)
        if identity not in identities and point.step not in logged.get(point.key, set()):
            identities.add(identity)
            missing.append(point)
    return missing
