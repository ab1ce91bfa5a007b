"""The `gate` section: the conditions for registration."""

from collections.abc import Iterator

from pydantic import Field

from model.frozen_config import FrozenConfig


class GateConfig(FrozenConfig):
    """Bounds on metrics, and whether the champion must be beaten. Where a metric has a 95 % interval, the gate uses that."""

    at_most: dict[str, float] = Field(
        default_factory=dict, description="metric key -> largest value that passes, like {'eval/fid_50k' = 10.0}"
    )
    at_least: dict[str, float] = Field(default_factory=dict, description="metric key -> smallest value that passes")
    cautious: bool = Field(True, description="a bound must hold at the worse end of a metric's 95 % interval; false: at the metric itself")
    no_worse_than_champion: bool = Field(
        True,
        description="the headline must not be worse than the champion's by more than chance and tolerance; both have the same "
        "protocol, but a student of few steps its own sampler",
    )
    better_than_champion: bool = Field(False, description="the headline must be better than the champion's by more than chance")
    tolerance: float = Field(0.0, ge=0, le=1, description="largest share by which the headline may be worse than the champion's")

    def problems(self) -> Iterator[str]:
        if self.better_than_champion and self.tolerance:
            yield "better_than_champion and tolerance contradict each other: leave one out"
