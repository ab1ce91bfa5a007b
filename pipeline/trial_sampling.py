"""How trials draw their images: sweeps and `celebdit evaluate` compare weights with one another, for which few network calls do.

What is registered is measured with the sampler that it is served with. docs/evaluation.md has a measurement of how alike both rank.
"""

from model.config import SamplingConfig
from model.sampler_table import SAMPLERS

_SAMPLER, _NUM_STEPS = "unipc", 20


def trial_sampling(sampling: SamplingConfig) -> dict[str, object]:
    """Return the settings of `sampling` to change for trials: none if it calls the network as seldom as UniPC in 20 steps.

    With a time shift few steps of UniPC end far from the distribution that the network has learned, so the sampler stays.
    """
    if sampling.time_shift != 1 or SAMPLERS[sampling.sampler].calls(sampling.num_steps) <= SAMPLERS[_SAMPLER].calls(_NUM_STEPS):
        return {}
    changes: dict[str, object] = {"sampler": _SAMPLER, "num_steps": _NUM_STEPS}
    return changes | ({"eta": 0.0} if sampling.eta else {})
