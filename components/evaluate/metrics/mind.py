"""Sliced Wasserstein distance of the features of the generated images to those of the references."""

import torch

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.features.sliced_distance import sliced_distance


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the distance of the generated images to the references."""
    generated, reference = (torch.tensor(rows, device=inputs.device) for rows in (inputs.generated.main, inputs.reference.main))
    return (Value(sliced_distance(generated.float(), reference.float())),)
