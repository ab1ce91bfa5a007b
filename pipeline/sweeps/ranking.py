"""Scores of trials with their intervals, their order on a rung, and which differences are shown.

A trial's score is the mean of its metric over the training seeds. Its 95 % interval is Student's t over the seeds; with one seed it is the
interval of the measurement, which says nothing about another seed. Two trials differ only if their intervals do not overlap.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.sweeps.records import Piece, Scored, SweepState

Goal = Literal["minimize", "maximize"]
_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""97.5 % quantiles of Student's t distribution for 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Score:
    """A trial's score on a rung."""

    trial: int
    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width; None without an interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def text(self) -> str:
        """Return the score with its interval."""
        return f"{self.mean:.4g}" + ("" if self.half_width is None else f" ± {self.half_width:.2g}")

    def overlaps(self, other: "Score") -> bool | None:
        """Return whether the intervals overlap; None if one of the scores has none."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


def score_of(trial: int, measured: Sequence[Scored]) -> Score:
    """Return the score of a trial from its measurements, one per seed."""
    values = [record.value for record in measured]
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Score(trial, mean, measured[0].low, measured[0].high, 1)
    half = _T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Score(trial, mean, mean - half, mean + half, len(values))


def rank(state: SweepState, trials: Iterable[int], *, steps: int, seeds: Sequence[int], goal: Goal) -> list[Score]:
    """Return the scores of those of `trials` that have one of every seed on the rung of so many steps, the best first."""
    scores = []
    for trial in trials:
        measured = [state.scored.get(Piece(steps, trial, seed)) for seed in seeds]
        if all(measured):
            scores.append(score_of(trial, [record for record in measured if record is not None]))
    sign = 1 if goal == "minimize" else -1
    return sorted(scores, key=lambda score: (sign * score.mean, score.trial))


def comparison(score: Score, other: Score) -> str:
    """Return in words whether two scores differ."""
    overlaps = score.overlaps(other)
    if overlaps is None:
        return f"no interval to compare with trial {other.trial}"
    if not overlaps:
        return f"worse than trial {other.trial}"
    return f"no difference shown to trial {other.trial}"
