"""Kernel distance (Binkowski et al. 2018), by torch-fidelity's own function on our features."""

import numpy as np
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.evaluate.metrics.table import kid_subset_images


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return mean and standard deviation over random subsets."""
    generated, reference = inputs.generated.main, inputs.reference.main
    result = kid_features_to_metric(
        torch.from_numpy(generated.astype(np.float64)),
        torch.from_numpy(np.asarray(reference, dtype=np.float64)),
        kid_subsets=inputs.config.kid_subsets,
        kid_subset_size=kid_subset_images(inputs.config, len(generated), len(reference)),
        verbose=False,
    )
    return Value(result[KEY_METRIC_KID_MEAN]), Value(result[KEY_METRIC_KID_STD])
