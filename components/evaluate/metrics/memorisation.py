"""Share of generated images that copy a training image, and the median distance to the nearest one (see `neighbours.py`)."""

import numpy as np

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.evaluate.metrics.intervals import interval_of_share


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the share of images nearer than `memorised_below`, and the median distance, in usual distances."""
    nearest = inputs.nearest
    assert nearest is not None, "the table says that this metric needs the nearest training images"
    copied = nearest.copied_share(inputs.config.memorised_below)
    return Value(copied, interval_of_share(copied, len(nearest.share))), Value(float(np.median(nearest.share)))
