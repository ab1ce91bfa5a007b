"""Options for autoguidance: sampling guided by a weaker model (Karras et al. 2024).

Promises: contradictory options are refused before any server is contacted. The method itself is in `model/sampling.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from components.errors import BadInput
from pipeline.commands.students import refuse_guidance

if TYPE_CHECKING:
    import torch

    from components.runtime.context import StepContext
    from components.weights.find import ResolvedWeights
    from model.generator import Guidance

F = TypeVar("F", bound=Callable[..., Any])
_USUAL, _MOST = 1.5, 20.0


class GuidanceFacts(TypedDict):
    """The guidance in the JSON output."""

    guide: str
    checkpoint_digest: str
    ema: str
    weight: float
    interval: list[float]


@dataclass(frozen=True)
class Guide:
    """Weights of the weaker model, and how they guide."""

    weights: "ResolvedWeights"
    weight: float
    interval: tuple[float, float]

    def guidance(self, device: "torch.device") -> "Guidance":
        """Load the weaker network to `device`."""
        from model.generator import Guidance

        low, high = self.interval
        return Guidance(self.weights.generator(device), self.weight, t_low=low, t_high=high)

    @property
    def description(self) -> str:
        low, high = self.interval
        when = "" if self.interval == (0.0, 1.0) else f", from flow time {low:g} to {high:g}"
        return f"guided by {self.weights.source}, EMA {self.weights.ema}, weight {self.weight:g}{when}"

    @property
    def facts(self) -> GuidanceFacts:
        return {
            "guide": self.weights.source,
            "checkpoint_digest": self.weights.digest,
            "ema": self.weights.ema,
            "weight": self.weight,
            "interval": list(self.interval),
        }


@dataclass(frozen=True)
class GuidanceRequest:
    """Values of the options; no weights have been looked up yet."""

    source: str
    ema: str | None
    weight: float
    interval: tuple[float, float]

    def find(self, guided: "ResolvedWeights", context: "StepContext | None") -> Guide:
        """Look up the weights that guide `guided`; `context` may be None if `source` is a local folder.

        Raises:
            BadInput: if `source` does not exist, or refers to `guided` itself, or one of both is a student of few steps.
        """
        from components.weights.find import find_weights

        refuse_guidance(guided, role="SOURCE")
        weights = find_weights(self.source, ema=self.ema, context=context)
        refuse_guidance(weights, role="--guide")
        if (weights.digest, weights.ema) == (guided.digest, guided.ema):
            raise BadInput(
                f"--guide {self.source}: SOURCE and --guide are the same weights, so guidance has no effect",
                hint="use a weaker model: an early RUN@STEP of the same run, or a smaller network",
            )
        return Guide(weights, self.weight, self.interval)


def guidance_options(function: F) -> F:
    """Add `--guide`, `--guidance`, `--guide-ema` and `--guidance-interval`, which the command receives as one `guidance_request`."""

    @click.option(
        "--guide", metavar="SOURCE", help="Weights of the weaker model used for autoguidance, such as an early RUN@STEP of the same run."
    )
    @click.option("--guidance", type=float, help=f"Guidance weight; 1 disables guidance.  [default: {_USUAL:g}]")
    @click.option("--guide-ema", help="EMA of the weaker model by its sigma_rel, or none for the raw weights.  [default: the widest]")
    @click.option(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar="LOW HIGH",
        help="Flow-time interval in which guidance is applied (0 = image, 1 = noise).  [default: 0 1]",
    )
    @wraps(function)
    def with_guidance(
        *arguments: Any,
        guide: str | None,
        guidance: float | None,
        guide_ema: str | None,
        guidance_interval: tuple[float, float] | None,
        **others: Any,
    ) -> Any:
        return function(*arguments, guidance_request=parse_guidance(guide, guide_ema, guidance, guidance_interval), **others)

    return with_guidance  # type: ignore[return-value]


def parse_guidance(
    source: str | None, ema: str | None, weight: float | None, interval: tuple[float, float] | None
) -> GuidanceRequest | None:
    """Check the options and return them, or None without `--guide`.

    Raises:
        BadInput: if another option comes without `--guide`, or a number is out of bounds.
    """
    if source is None:
        for option, value in (("--guidance", weight), ("--guide-ema", ema), ("--guidance-interval", interval)):
            if value is not None:
                raise BadInput(
                    f"{option} needs --guide", hint="give the weights of the weaker model, such as an early RUN@STEP of the same run"
                )
        return None
    weight = _USUAL if weight is None else weight
    if not 1 <= weight <= _MOST:
        raise BadInput(f"--guidance {weight:g} must lie between 1 and {_MOST:g}", hint="usual weights are 1.2 to 3")
    low, high = interval or (0.0, 1.0)
    if not 0 <= low < high <= 1:
        raise BadInput(
            f"--guidance-interval {low:g} {high:g} must be two increasing flow times between 0 and 1", hint="0 = image, 1 = noise"
        )
    return GuidanceRequest(source, ema, weight, (low, high))
