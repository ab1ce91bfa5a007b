"""Energy of the generated images over that of the references, per octave of spatial frequency.

Blur takes energy out of the finest octave and noise adds it, which distances on features hardly see.
"""

import math

import numpy as np

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.manifests import NORMAL_QUANTILE, MetricInterval

_ROUNDING = (1 / 127.5) ** 2 / 12
"""Energy that rounding to 256 levels adds to a pixel: what is far below it is no difference."""


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the largest deviation in octaves of energy, |log2(ratio)|, and the ratio of each octave, the finest first; 0 and 1 are right.

    Intervals are the sampling error of the generated images.
    """
    energies = inputs.energies
    assert energies is not None, "the table says that this metric needs energies"
    generated, reference = (rows.astype(np.float64) + _ROUNDING for rows in (energies.generated, energies.reference))
    ratios = generated.mean(0) / reference.mean(0)
    errors = generated.std(0, ddof=1) / math.sqrt(len(generated)) / reference.mean(0)
    deviations = np.abs(np.log2(ratios))
    worst = int(deviations.argmax())
    largest = _value(deviations[worst], errors[worst] / (ratios[worst] * math.log(2)))
    return largest, *(_value(ratio, error) for ratio, error in zip(ratios, errors, strict=True))


def _value(value: float, std: float) -> Value:
    half = NORMAL_QUANTILE * float(std)
    return Value(float(value), MetricInterval(low=max(float(value) - half, 0.0), high=float(value) + half, std=float(std)))
