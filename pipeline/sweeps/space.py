"""The settings that a sweep varies: choices and ranges, their combinations, and random draws from them.

A dimension is a setting (`optimizer.lr_peak`) or a section (`diffusion`), whose options are tables of settings that belong together.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field

from model.frozen_config import FrozenConfig
from pipeline.sweeps.counters import uniform

Values = dict[str, Any]
"""Dimension -> value."""
MOST_COMBINATIONS = 4096
_DIGITS = 4
_SECTIONS = ("network", "diffusion", "optimizer", "training")
_TRAINING = ("batch_images", "horizontal_flip", "ema_sigma_rel", "ema_decay", "precision")
"""Of the `training` section, what a run key contains besides the seed; see `TrainingConfig.identity`."""


class Range(FrozenConfig):
    """Numbers from `low` to `high`, integers if both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="draw the logarithm uniformly")

    def problems(self) -> Iterator[str]:
        if self.low >= self.high:
            yield f"low {self.low} must be smaller than high {self.high}"
        if self.log and self.low <= 0:
            yield f"low {self.low} must be larger than 0 with log = true"

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> int | float:
        """Return the number at `share`, in [0, 1), of the range."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.is_whole and not self.log:
            return int(low + math.floor(share * (high - low + 1)))
        value = low + share * (high - low)
        return self.round_value(math.exp(value) if self.log else value)

    def round_value(self, value: float) -> int | float:
        """Return `value` with as many digits as a person wants to read, within the range."""
        near = round(value) if self.is_whole else float(f"{value:.{_DIGITS}g}")
        return min(max(near, self.low), self.high)


Choices = list[Any]


@dataclass(frozen=True)
class Space:
    """Dimensions in the order of their names."""

    dimensions: Mapping[str, Range | Choices]

    @classmethod
    def of(cls, dimensions: Mapping[str, Range | Choices]) -> Self:
        return cls(dict(sorted(dimensions.items())))

    @property
    def ranges(self) -> list[str]:
        """The dimensions that are ranges."""
        return [name for name, dimension in self.dimensions.items() if isinstance(dimension, Range)]

    @property
    def num_combinations(self) -> int:
        """Combinations of the choices, each range counted with its two ends."""
        return math.prod(2 if isinstance(dimension, Range) else len(dimension) for dimension in self.dimensions.values())

    def combinations(self) -> Iterator[Values]:
        """Yield every combination of the choices and of the ends of the ranges, the last dimension fastest."""
        options = [[item.low, item.high] if isinstance(item, Range) else item for item in self.dimensions.values()]
        for combination in itertools.product(*options):
            yield dict(zip(self.dimensions, combination, strict=True))

    def draw(self, seed: int, number: int, attempt: int = 0) -> Values:
        """Return the random values of trial `number`."""
        values: Values = {}
        for name, dimension in self.dimensions.items():
            share = uniform(seed, "draw", number, attempt, name)
            values[name] = dimension.at(share) if isinstance(dimension, Range) else dimension[int(share * len(dimension))]
        return values


def changes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as changes of a configuration: setting -> value."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        changes |= {name: value} if "." in name else {f"{name}.{key}": inner for key, inner in value.items()}
    return changes


def label_of(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={label_of(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(label_of, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def space_problems(space: Space) -> Iterator[str]:
    """Return what cannot be varied: only what a run key contains decides what is trained and leaves the measurement alone."""
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Range):
            yield from _setting_problems(name, name)
            continue
        if not dimension:
            yield f"vary.{name} has no option"
        if any(dimension[index] in dimension[:index] for index in range(len(dimension))):
            yield f"vary.{name} has an option twice"
        if "." in name:
            yield from _setting_problems(name, name)
        elif not all(isinstance(option, dict) and option for option in dimension):
            yield f"vary.{name}: an option of a section is a table of its settings, like {{prediction = 'x'}}"
        else:
            for setting in sorted({f"{name}.{key}" for option in dimension for key in option}):
                yield from _setting_problems(setting, name)
    names = [setting for name, dimension in space.dimensions.items() for setting in _settings_of(name, dimension)]
    for setting in sorted({setting for setting in names if names.count(setting) > 1}):
        yield f"vary names {setting} in two places"


def _settings_of(name: str, dimension: Range | Choices) -> Sequence[str]:
    if "." in name or isinstance(dimension, Range):
        return [name]
    return sorted({f"{name}.{key}" for option in dimension if isinstance(option, dict) for key in option})


def _setting_problems(setting: str, dimension: str) -> Iterator[str]:
    section, _, key = setting.partition(".")
    if setting == "training.seed":
        yield "vary.training.seed: set seeds, over which a trial's score is averaged"
    elif section not in _SECTIONS or (section == "training" and key not in _TRAINING):
        known = f"{', '.join(_SECTIONS[:-1])} and training.{', training.'.join(_TRAINING)}"
        yield f"vary.{dimension}: {setting} does not decide what is trained, or moves the measurement; {known} can be varied"
