"""Inception score (Salimans et al. 2016), by torch-fidelity's own function on Inception's class scores."""

import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from components.evaluate.metrics.inputs import MetricInputs, Value

_SPLITS = 10


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return mean and standard deviation over ten splits, or as many as there are images if those are fewer."""
    logits = inputs.generated.logits
    assert logits is not None, "the table says that this metric needs logits"
    result = isc_features_to_metric(torch.from_numpy(logits), splits=min(_SPLITS, len(logits)))
    return Value(result[KEY_METRIC_ISC_MEAN]), Value(result[KEY_METRIC_ISC_STD])
