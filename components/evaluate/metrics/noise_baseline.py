"""Frechet distance of images of pure noise: the scale of a distance on random features, where a trained model must be far below."""

import torch

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.features.frechet import frechet_distance
from components.features.moments import statistics


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the distance of the noise images to the references."""
    assert inputs.noise is not None, "the table says that this metric needs noise"
    return (Value(frechet_distance(statistics(torch.from_numpy(inputs.noise).to(inputs.device)), inputs.moments)),)
