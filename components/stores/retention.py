"""Which checkpoints of a run are kept. A pure function of their steps and scores; `checkpoints.py` deletes the others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Ranking = dict[str, list[tuple[float, int]]]
"""The values of each metric, lower being better, with the steps that they were measured at."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `newest` steps (at least two), the `best` by each metric, and one after every `every_steps`."""

    newest: int
    best: int = 0
    every_steps: int | None = None


def steps_to_keep(policy: Retention, existing: Iterable[int], ranking: Mapping[str, list[tuple[float, int]]]) -> set[int]:
    """Return the steps among `existing` that `policy` keeps."""
    steps = sorted(set(existing), reverse=True)
    kept = set(steps[: max(policy.newest, 2)])
    if policy.every_steps is not None:
        buckets: dict[int, int] = {}
        for step in steps:  # newest first, so that the first one after each milestone is kept
            buckets[step // policy.every_steps] = step
        kept |= {step for bucket, step in buckets.items() if bucket > 0}
    if policy.best:
        kept |= {step for measured in ranking.values() for _, step in sorted(measured)[: policy.best]}
    return kept
