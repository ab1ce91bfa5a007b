"""Compare runs: settings that differ, metrics with their protocol, cost, and one image with their samples.

Promises: metrics share a row only if they were measured under the same protocol; samples share a row only if they are of the same step.
Does not print; see `commands/compare.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from components.reports.score import score_text

_MOST_ROWS = 4
_LABEL_PX = 28
_GAP_PX = 12
_TILE_PX = 640
_ABSENT = "-"
_SMALLER, _LARGER = ("fid_", "fd_", "kid_", "kd_", "memorised_share"), ("precision", "recall", "density", "coverage")
"""Beginnings of the names of metrics that are better if they are smaller, or larger."""
_NO_SCORE = ("_of_noise", "_std")
_FEWEST_DIFFERENT = 2


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    protocol_name: str
    protocol_digest: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class RunFacts:
    """Settings, evaluations, cost and sample steps of one run."""

    name: str
    settings: Mapping[str, object]
    """Name -> value as JSON has it; a list is one value."""
    evaluations: list[Evaluation] = field(default_factory=list)
    cost: dict[str, float | str] = field(default_factory=dict)
    grid_steps: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Row:
    """One row of the table: the section, the name, and the value of each run."""

    kind: str
    name: str
    values: tuple[str, ...]
    best: frozenset[int] = frozenset()
    """Columns with the best value of a metric that has a good end; empty if all are equal."""


def rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Return the table: settings that differ, then metrics by protocol, then cost."""
    return [*_differences(runs), *_metrics(runs), *_costs(runs)]


def common_steps(runs: Sequence[RunFacts]) -> list[int]:
    """Return at most four steps at which every run has samples, including the first and the last."""
    shared = sorted(frozenset.intersection(*(run.grid_steps for run in runs)))
    if len(shared) <= _MOST_ROWS:
        return shared
    return [shared[round(index * (len(shared) - 1) / (_MOST_ROWS - 1))] for index in range(_MOST_ROWS)]


def same_seeds(runs: Sequence[RunFacts]) -> bool:
    """Return whether the samples of all runs are drawn from the same noise."""
    return len({str(run.settings.get("sampling.seed", 0)) for run in runs}) == 1


def last_steps(runs: Sequence[RunFacts]) -> list[int] | None:
    """Return the last step with samples of each run if these are not one step already; None, too, if a run has no samples."""
    if not all(run.grid_steps for run in runs):
        return None
    steps = [max(run.grid_steps) for run in runs]
    return steps if len(set(steps)) > 1 else None


def side_by_side(names: Sequence[str], grids: Mapping[int | str, Sequence[np.ndarray]]) -> np.ndarray:
    """Return one image: a labelled column per run and a row per step, or per label of its own."""
    font = ImageFont.load_default(16)
    width = len(names) * (_TILE_PX + _GAP_PX) + _GAP_PX
    tiles = {step: [_scale(grid) for grid in row] for step, row in grids.items()}
    height = _LABEL_PX + sum(_LABEL_PX + max(grid.height for grid in row) + _GAP_PX for row in tiles.values())
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((_GAP_PX + column * (_TILE_PX + _GAP_PX), 6), name, "black", font)
    top = _LABEL_PX
    for step, row in tiles.items():
        draw.text((_GAP_PX, top + 6), step if isinstance(step, str) else f"step {step}", "black", font)
        for column, grid in enumerate(row):
            canvas.paste(grid, (_GAP_PX + column * (_TILE_PX + _GAP_PX), top + _LABEL_PX))
        top += _LABEL_PX + max(grid.height for grid in row) + _GAP_PX
    return np.asarray(canvas)


def _differences(runs: Sequence[RunFacts]) -> list[Row]:
    names = sorted({name for run in runs for name in run.settings})
    differences = []
    for name in names:
        values = tuple(_text(run.settings.get(name, _ABSENT)) for run in runs)
        if len(set(values)) > 1:
            differences.append(Row("setting", name, values))
    return differences


def _metrics(runs: Sequence[RunFacts]) -> list[Row]:
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    keys = sorted({(e.protocol_name, e.protocol_digest, key) for e in evaluations for key in e.metrics if not _is_error(key, e.metrics)})
    metrics = []
    for name, digest, key in keys:
        values = tuple(_metric(run, digest, key) for run in runs)
        numbers = [None if (newest := _newest(run, digest, key)) is None else newest.metrics[key] for run in runs]
        metrics.append(Row(f"{name} {digest[:8]}", key, values, best_columns(key, numbers)))
    return metrics


def best_columns(key: str, values: Sequence[float | None]) -> frozenset[int]:
    """Return the columns with the best of at least two different values of a metric; empty for one that is neither good nor bad."""
    name = key.removeprefix("eval/")
    present = [value for value in values if value is not None]
    if key.endswith(_NO_SCORE) or not name.startswith((*_SMALLER, *_LARGER)) or len(set(present)) < _FEWEST_DIFFERENT:
        return frozenset()
    best = min(present) if name.startswith(_SMALLER) else max(present)
    return frozenset(column for column, value in enumerate(values) if value == best)


def _newest(run: RunFacts, protocol_digest: str, key: str) -> Evaluation | None:
    """Return the evaluation of the newest checkpoint that has this metric under this protocol."""
    evaluations = [e for e in run.evaluations if e.protocol_digest == protocol_digest and key in e.metrics]
    return max(evaluations, key=lambda evaluation: evaluation.step, default=None)


def _metric(run: RunFacts, protocol_digest: str, key: str) -> str:
    """Return the metric of the newest checkpoint that has it, with half of its 95 % interval."""
    newest = _newest(run, protocol_digest, key)
    if newest is None:
        return _ABSENT
    return score_text(newest.metrics[key], newest.metrics.get(f"{key}_std"))


def _is_error(key: str, metrics: Mapping[str, float]) -> bool:
    """Return whether `key` is the error of another metric, which shows it."""
    return key.endswith("_std") and key.removesuffix("_std") in metrics


def _costs(runs: Sequence[RunFacts]) -> list[Row]:
    names = list(dict.fromkeys(name for run in runs for name in run.cost))
    return [Row("cost", name, tuple(_text(run.cost.get(name, _ABSENT)) for run in runs)) for name in names]


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _scale(grid: np.ndarray) -> Image.Image:
    image = Image.fromarray(grid)
    height = round(image.height * _TILE_PX / image.width)
    return image.resize((_TILE_PX, height), Image.Resampling.LANCZOS if image.width > _TILE_PX else Image.Resampling.NEAREST)
