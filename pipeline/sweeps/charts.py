"""Coordinates of a sweep's two charts: scores by rung, and parallel coordinates. Pure; the page draws them as SVG."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.sweeps.ranking import Score
from pipeline.sweeps.space import Range, label_of
from pipeline.sweeps.standing import Standing
from pipeline.sweeps.sweep_file import Sweep, values_label

_WIDTH, _HEIGHT, _LEFT, _MARGIN = 760, 320, 70, 30
_AXIS_PX, _MOST_TICKS, _LOG_FROM = 120, 5, 8.0
_CHARACTER_PX, _GAP_PX = 8.0, 8
"""Of a label beside an axis, and around it."""
_APART_PX, _BESIDE_PX = 14.0, 80.0
"""Between the bars of two trials on a rung, and of all of them."""
_LABEL_CHARACTERS = 16
_MOST_NUMBERS = 8
"""So many trials have their number above their bars."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str

    @property
    def lines(self) -> list[str]:
        """The label in lines that are not long, unless a word is."""
        return textwrap.wrap(self.text, _LABEL_CHARACTERS, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Bar:
    """A score with its interval."""

    x: float
    y: float
    low: float
    high: float
    text: str
    number: str
    """Of the trial, or nothing where many trials leave no room for it."""


@dataclass(frozen=True)
class Curve:
    """A trial's line, with a dot where it meets an axis."""

    path: str
    """As SVG's attribute `d`."""
    label: str
    is_winner: bool
    is_kept: bool
    bars: tuple[Bar, ...] = ()
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class RungChart:
    """Scores by rung."""

    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _MARGIN


@dataclass(frozen=True)
class Axis:
    """One setting, or the score, with its labels on the right."""

    x: float
    name: str
    ticks: list[Tick]

    @property
    def end(self) -> float:
        """Where its labels end, and lines to the next axis begin: no line crosses a label."""
        return round(
            self.x + _GAP_PX + _CHARACTER_PX * max((len(line) for tick in self.ticks for line in tick.lines), default=0) + _GAP_PX, 1
        )


@dataclass(frozen=True)
class ParallelChart:
    """Settings and score of each trial as a line across axes."""

    curves: list[Curve]
    axes: list[Axis]
    width: int
    height: int = _HEIGHT
    top: int = 2 * _MARGIN
    bottom: int = _HEIGHT - _MARGIN


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = field(default=False)

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log(item) if self.log else item for item in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(self.start_px + share * (self.end_px - self.start_px), 1)

    def ticks(self, count: int = _MOST_TICKS) -> list[Tick]:
        """Return evenly spaced places with their values."""
        if self.high == self.low:
            return [Tick(self.at(self.low), f"{self.low:.3g}")]
        shares = [index / (count - 1) for index in range(count)]
        values = [self.low * (self.high / self.low) ** s if self.log else self.low + s * (self.high - self.low) for s in shares]
        return [Tick(self.at(value), f"{value:.3g}") for value in values]

    def round_ticks(self) -> list[Tick]:
        """Return places with round values, which a linear scale has between its ends."""
        if self.high == self.low:
            return self.ticks()
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / _MOST_TICKS))
        step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (self.high - self.low) / step <= _MOST_TICKS)
        numbers = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [Tick(self.at(number * step), f"{number * step:.6g}") for number in numbers]


def rung_chart(sweep: Sweep, rows: Sequence[Standing]) -> RungChart:
    """Return the scores of all trials by rung."""
    rungs = sweep.config.rungs
    across = Scale(rungs[0], rungs[-1], _LEFT + _MARGIN, _WIDTH - 2 * _MARGIN, log=rungs[-1] / rungs[0] > _LOG_FROM)
    scores = [score for row in rows for score in row.scores.values()]
    down = score_scale(scores, top=_MARGIN, bottom=_HEIGHT - 2 * _MARGIN, least=sweep.least)
    curves = []
    scored = sorted(row.trial for row in rows if row.scores)
    apart = min(_APART_PX, _BESIDE_PX / max(1, len(scored)))
    for row in reversed(rows):  # the best is drawn last, over the others
        shift = apart * (scored.index(row.trial) - (len(scored) - 1) / 2) if row.scores else 0.0
        number = str(row.trial) if len(scored) <= _MOST_NUMBERS else ""
        bars = [_bar(score, across.at(steps) + shift, down, number, sweep.least) for steps, score in sorted(row.scores.items())]
        path = f"M {' L '.join(f'{bar.x},{bar.y}' for bar in bars)}" if bars else ""
        curves.append(Curve(path, _label(row), row.status == "winner", len(row.scores) > 1, tuple(bars)))
    return RungChart(curves, [Tick(across.at(steps), str(steps)) for steps in rungs], down.round_ticks() if scores else [])


def parallel_chart(sweep: Sweep, rows: Sequence[Standing]) -> ParallelChart:
    """Return the settings of all trials that have a score on the first rung, and that score."""
    first = sweep.config.rungs[0]
    measured = [row for row in rows if first in row.scores]
    down = score_scale([row.scores[first] for row in measured], top=2 * _MARGIN, bottom=_HEIGHT - _MARGIN, intervals=False)
    placed = [_dimension(name, item) for name, item in sweep.space.dimensions.items()]
    axes: list[Axis] = []
    named = [(name.rpartition(".")[2], ticks) for name, (_, ticks) in zip(sweep.space.dimensions, placed, strict=True)]
    for name, ticks in [*named, (f"step {first}", down.round_ticks() if measured else [])]:
        axes.append(Axis(axes[-1].end + _AXIS_PX if axes else _LEFT, name, ticks))
    curves = []
    for row in reversed(measured):
        ys = [place(row.values[name]) for name, (place, _) in zip(sweep.space.dimensions, placed, strict=True)]
        dots = [(axis.x, y) for axis, y in zip(axes, [*ys, down.at(row.scores[first].mean)], strict=True)]
        lines = [f"M {axis.end},{y} L {x - _GAP_PX},{to}" for axis, (_, y), (x, to) in zip(axes, dots, dots[1:], strict=False)]
        curves.append(Curve(" ".join(lines), _label(row), row.status == "winner", len(row.scores) > 1, dots=tuple(dots)))
    return ParallelChart(curves, axes, width=round(axes[-1].end) + _LEFT)


def score_scale(scores: Sequence[Score], *, top: float, bottom: float, intervals: bool = True, least: float | None = None) -> Scale:
    """Return the scale of an axis that holds all scores, larger ones higher up; intervals end at the `least` value of the metric."""
    ends = [_clamp_end(end, least) for score in scores for end in ((score.low, score.high) if intervals else ()) if end is not None]
    values = [*(score.mean for score in scores), *ends] or [0.0]
    return Scale(min(values), max(values), bottom, top)


def _clamp_end(end: float, least: float | None) -> float:
    return end if least is None else max(end, least)


def _bar(score: Score, x: float, down: Scale, number: str, least: float | None) -> Bar:
    low, high = (score.mean if end is None else _clamp_end(end, least) for end in (score.low, score.high))
    return Bar(round(x, 1), down.at(score.mean), down.at(low), down.at(high), score.text(), number)


def _label(row: Standing) -> str:
    return f"trial {row.trial}: {values_label(row.values)}"


def _dimension(name: str, dimension: Range | list[Any]) -> tuple[Callable[[Any], float], list[Tick]]:
    """Return where the values of a dimension are on its axis, and the axis's labels."""
    top, bottom = 2 * _MARGIN, _HEIGHT - _MARGIN
    if isinstance(dimension, Range):
        scale = Scale(dimension.low, dimension.high, bottom, top, log=dimension.log)
        return scale.at, scale.ticks()
    numbers = all(isinstance(option, int | float) for option in dimension)
    options = sorted(dimension) if numbers else dimension
    scale = Scale(0, max(1, len(options) - 1), bottom, top)
    return lambda value: scale.at(options.index(value)), [Tick(scale.at(place), label_of(option)) for place, option in enumerate(options)]
