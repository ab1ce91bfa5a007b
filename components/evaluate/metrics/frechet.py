"""Frechet distance of the generated images to the references, with a bootstrap interval."""

import torch

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.features.frechet import bootstrap, frechet_distance
from components.features.moments import statistics


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return the distance of the generated images to the references, with its interval if resamples are configured."""
    rows = torch.from_numpy(inputs.generated.main).to(inputs.device)
    value = frechet_distance(statistics(rows), inputs.moments)
    replicates = inputs.config.bootstrap_replicates
    return (Value(value, bootstrap(rows, inputs.moments, value, replicates=replicates, seed=0) if replicates else None),)
