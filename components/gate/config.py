"""The `gate` section: what a checkpoint must reach to be registered."""

from pydantic import Field

from model.config import FrozenConfig


class GateConfig(FrozenConfig):
    """Bounds on metrics, and whether the champion must be beaten."""

    at_most: dict[str, float] = Field(
        default_factory=dict, description="metric key -> largest value that passes, like {'eval/fid_50k' = 10.0}"
    )
    at_least: dict[str, float] = Field(default_factory=dict, description="metric key -> smallest value that passes")
    no_worse_than_champion: bool = Field(
        True, description="the headline metric must not be worse than the champion's, under the same protocol"
    )
    tolerance: float = Field(0.0, ge=0, le=1, description="how much worse than the champion's, relatively, still passes")
