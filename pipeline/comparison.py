"""Several runs beside each other: what differs in their settings, their numbers with the protocol of each, what they cost, and one picture.

Promises: numbers stand in one row only if they were made under one protocol; samples stand in one row only if they are of the same step and
of the same noise, or the command says that they are not. How a table is printed is the command's business.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MOST_ROWS = 4
_LABEL_PX = 28
_GAP_PX = 12
_TILE_PX = 640
_ABSENT = "-"


@dataclass(frozen=True)
class Measured:
    """One evaluation of a run."""

    protocol_name: str
    protocol_digest: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class RunFacts:
    """What is known of one run."""

    name: str
    settings: dict[str, Any]
    evaluations: list[Measured] = field(default_factory=list)
    cost: dict[str, float | str] = field(default_factory=dict)
    grid_steps: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Row:
    """One line of the table: what it says, and each run's value."""

    kind: str
    name: str
    values: tuple[str, ...]


def flattened(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested settings as `section.key` -> value."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{path}.{key}" if path else str(key)
        flat |= flattened(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def rows(runs: Sequence[RunFacts]) -> list[Row]:
    """Return the table: settings that differ, then numbers by protocol, then cost."""
    return [*_differences(runs), *_numbers(runs), *_costs(runs)]


def common_steps(runs: Sequence[RunFacts]) -> list[int]:
    """Return up to four steps at which every run has samples, the first and the last of them among those."""
    shared = sorted(frozenset.intersection(*(run.grid_steps for run in runs)))
    if len(shared) <= _MOST_ROWS:
        return shared
    return [shared[round(index * (len(shared) - 1) / (_MOST_ROWS - 1))] for index in range(_MOST_ROWS)]


def same_seeds(runs: Sequence[RunFacts]) -> bool:
    """Return whether the samples of all runs are drawn from the same noise."""
    return len({str(run.settings.get("sampling.seed", 0)) for run in runs}) == 1


def side_by_side(names: Sequence[str], grids: Mapping[int, Sequence[np.ndarray]]) -> np.ndarray:
    """Return one picture: a column per run, a row per step, each with its label."""
    font = ImageFont.load_default(16)
    width = len(names) * (_TILE_PX + _GAP_PX) + _GAP_PX
    shown = {step: [_scaled(grid) for grid in row] for step, row in grids.items()}
    height = _LABEL_PX + sum(_LABEL_PX + max(grid.height for grid in row) + _GAP_PX for row in shown.values())
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        draw.text((_GAP_PX + column * (_TILE_PX + _GAP_PX), 6), name, "black", font)
    top = _LABEL_PX
    for step, row in shown.items():
        draw.text((_GAP_PX, top + 6), f"step {step}", "black", font)
        for column, grid in enumerate(row):
            canvas.paste(grid, (_GAP_PX + column * (_TILE_PX + _GAP_PX), top + _LABEL_PX))
        top += _LABEL_PX + max(grid.height for grid in row) + _GAP_PX
    return np.asarray(canvas)


def step_of_image(path: str, key: str) -> int | None:
    """Return the step of an MLflow image artifact's path if it is a PNG of `key`, else None."""
    name = re.escape(key.replace("/", "~"))
    matched = re.search(rf"(?:^|/){name}[+%]step[+%](\d+)[+%].*\.png$", path)
    return int(matched[1]) if matched else None


def _differences(runs: Sequence[RunFacts]) -> list[Row]:
    names = sorted({name for run in runs for name in run.settings})
    found = []
    for name in names:
        values = tuple(_text(run.settings.get(name, _ABSENT)) for run in runs)
        if len(set(values)) > 1:
            found.append(Row("setting", name, values))
    return found


def _numbers(runs: Sequence[RunFacts]) -> list[Row]:
    measured = [m for run in runs for m in run.evaluations]
    wanted = sorted({(m.protocol_name, m.protocol_digest, key) for m in measured for key in m.metrics if not _is_error(key, m.metrics)})
    found = []
    for name, digest, key in wanted:
        values = tuple(_number(run, digest, key) for run in runs)
        found.append(Row(f"{name} {digest[:8]}", key, values))
    return found


def _number(run: RunFacts, protocol_digest: str, key: str) -> str:
    """Return the number of the newest checkpoint that has it, with its error."""
    having = [m for m in run.evaluations if m.protocol_digest == protocol_digest and key in m.metrics]
    if not having:
        return _ABSENT
    newest = max(having, key=lambda measured: measured.step)
    error = newest.metrics.get(f"{key}_std")
    return f"{newest.metrics[key]:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _is_error(key: str, metrics: Mapping[str, float]) -> bool:
    """Return whether `key` is the error of another number, beside which it is shown."""
    return key.endswith("_std") and key.removesuffix("_std") in metrics


def _costs(runs: Sequence[RunFacts]) -> list[Row]:
    names = list(dict.fromkeys(name for run in runs for name in run.cost))
    return [Row("cost", name, tuple(_text(run.cost.get(name, _ABSENT)) for run in runs)) for name in names]


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _scaled(grid: np.ndarray) -> Image.Image:
    picture = Image.fromarray(grid)
    height = round(picture.height * _TILE_PX / picture.width)
    return picture.resize((_TILE_PX, height), Image.Resampling.LANCZOS if picture.width > _TILE_PX else Image.Resampling.NEAREST)
