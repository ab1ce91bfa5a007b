"""The table of samplers: name, label, order and cost of each.

To add a sampler, add an entry here and a function of the same name to `samplers.py`. Needs no PyTorch, so that a configuration can be
checked fast.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerSpec:
    """What a user should know to choose a sampler."""

    label: str
    """Name in the literature."""
    order: int | None
    """Order of convergence to the probability flow, as the tests measure it; None for ancestral sampling."""
    calls_per_step: int = 1
    """Network calls per step, except for the last one, which takes one call."""
    uses_eta: bool = False
    """Whether `SamplingConfig.eta` changes what it draws."""

    def calls(self, num_steps: int) -> int:
        """Return how often the network is called for one image."""
        return self.calls_per_step * num_steps - (self.calls_per_step - 1)

    @property
    def summary(self) -> str:
        """Label, order and cost in a few words."""
        order = "ancestral" if self.order is None else f"order {self.order}"
        calls = "1 network call" if self.calls_per_step == 1 else f"{self.calls_per_step} network calls"
        return f"{self.label}, {order}, {calls} per step"


SAMPLERS: dict[str, SamplerSpec] = {
    "ddpm": SamplerSpec("DDPM", order=None),
    "ddim": SamplerSpec("DDIM", order=1, uses_eta=True),
    "euler": SamplerSpec("Euler", order=1),
    "heun": SamplerSpec("Heun", order=2, calls_per_step=2),
    "dpmpp_2m": SamplerSpec("DPM-Solver++(2M)", order=2),
    "unipc": SamplerSpec("UniPC", order=3),
}


def samplers_that_use_eta() -> list[str]:
    """Return the names of the samplers that read `SamplingConfig.eta`."""
    return [name for name, spec in SAMPLERS.items() if spec.uses_eta]
