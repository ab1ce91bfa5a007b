"""Values of metrics on their way to MLflow; needs no MLflow, so that ranks that never speak to it need not import it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    step: int
    value: float
    timestamp_ms: int


def unseen(points: Iterable[Point], seen: Mapping[str, set[int]]) -> list[Point]:
    """Return the points whose (key, step) is not in `seen`, each once, the first one winning."""
    taken: set[tuple[str, int]] = set()
    fresh = []
    for point in points:
        identity = (point.key, point.step)
        if identity not in taken and point.step not in seen.get(point.key, set()):
            taken.add(identity)
            fresh.append(point)
    return fresh
