"""Share of generated images that are much nearer to one training image than to any other: a copy by the usual ratio."""

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.evaluate.metrics.intervals import interval_of_share
from components.evaluate.metrics.table import COPY_RATIO


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the share of images whose nearest training image is nearer than `COPY_RATIO` of the distance to the second nearest."""
    nearest = inputs.nearest
    assert nearest is not None, "the table says that this metric needs the nearest training images"
    copied = float((nearest.ratio < COPY_RATIO).mean())
    return (Value(copied, interval_of_share(copied, len(nearest.ratio))),)
