"""The options that name a weaker model to keep away from, and what they stand for (autoguidance, Karras et al. 2024).

Promises: what contradicts itself is refused before any server is asked. How guidance works is `model/sampling.py`'s business.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from components.errors import BadInput

if TYPE_CHECKING:
    import torch

    from components.runtime.context import StepContext
    from components.weights.find import ResolvedWeights
    from model.generator import Guidance

F = TypeVar("F", bound=Callable[..., Any])
_USUAL, _MOST = 1.5, 20.0


@dataclass(frozen=True)
class Guide:
    """The weaker weights, found, and how they are used."""

    found: "ResolvedWeights"
    weight: float
    interval: tuple[float, float]

    def guidance(self, device: "torch.device") -> "Guidance":
        """Return the weaker network on `device`, ready to guide."""
        from model.generator import Guidance

        low, high = self.interval
        return Guidance(self.found.generator(device), self.weight, t_low=low, t_high=high)

    @property
    def told(self) -> str:
        low, high = self.interval
        where = "" if self.interval == (0.0, 1.0) else f", from time {low:g} to {high:g}"
        return f"guided by {self.found.source}, average {self.found.ema}, weight {self.weight:g}{where}"

    @property
    def facts(self) -> dict[str, object]:
        return {
            "guide": self.found.source,
            "checkpoint_digest": self.found.digest,
            "ema": self.found.ema,
            "weight": self.weight,
            "interval": list(self.interval),
        }


@dataclass(frozen=True)
class Guiding:
    """What the options ask for; nothing was looked up yet."""

    source: str
    ema: str | None
    weight: float
    interval: tuple[float, float]

    def find(self, guided: "ResolvedWeights", context: "StepContext | None") -> Guide:
        """Return the guide of the weights `guided`; `context` reaches the servers and may be None for a folder.

        Raises:
            BadInput: if `source` names nothing, or what it names is `guided` itself.
        """
        from components.weights.find import find_weights

        found = find_weights(self.source, ema=self.ema, context=context)
        if (found.digest, found.ema) == (guided.digest, guided.ema):
            raise BadInput(
                f"--guide {self.source}: these are the weights that it should guide, so nothing would change",
                hint="name weaker ones: an early RUN@STEP of the same run, or a smaller network",
            )
        return Guide(found, self.weight, self.interval)


def guidance_options(function: F) -> F:
    """Add `--guide`, `--guidance`, `--guide-ema` and `--guidance-interval`, which the command gets as one `guiding`."""

    @click.option("--guide", metavar="SOURCE", help="Weaker weights to keep away from, such as an early RUN@STEP of the same run.")
    @click.option("--guidance", type=float, help=f"How far to keep away from --guide; 1 is not at all.  [default: {_USUAL:g}]")
    @click.option("--guide-ema", help="Which average of the guide's weights, or none.  [default: the widest there is]")
    @click.option(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar="LOW HIGH",
        help="Times between which the guide is heard; 0 is the image, 1 noise.  [default: 0 1]",
    )
    @wraps(function)
    def with_guiding(
        *arguments: Any,
        guide: str | None,
        guidance: float | None,
        guide_ema: str | None,
        guidance_interval: tuple[float, float] | None,
        **others: Any,
    ) -> Any:
        return function(*arguments, guiding=guiding_of(guide, guide_ema, guidance, guidance_interval), **others)

    return with_guiding  # type: ignore[return-value]


def guiding_of(source: str | None, ema: str | None, weight: float | None, interval: tuple[float, float] | None) -> Guiding | None:
    """Return what the options ask for, or None without a guide.

    Raises:
        BadInput: if an option of guidance comes without a guide, or a number is out of its bounds.
    """
    if source is None:
        for option, value in (("--guidance", weight), ("--guide-ema", ema), ("--guidance-interval", interval)):
            if value is not None:
                raise BadInput(f"{option} needs --guide", hint="name the weaker weights, such as an early RUN@STEP of the same run")
        return None
    weight = _USUAL if weight is None else weight
    if not 1 <= weight <= _MOST:
        raise BadInput(f"--guidance {weight:g} must lie between 1 and {_MOST:g}", hint="usual weights are 1.2 to 3")
    low, high = interval or (0.0, 1.0)
    if not 0 <= low < high <= 1:
        raise BadInput(f"--guidance-interval {low:g} {high:g} must be two rising times between 0 and 1", hint="0 is the image, 1 noise")
    return Guiding(source, ema, weight, (low, high))
