"""Improved precision and recall (Kynkaanniemi et al. 2019), by torch-fidelity's own function on our features."""

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.evaluate.metrics.intervals import interval_of_share

_MANY_ROWS = 10_000


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return precision, a share of the generated images, and recall, a share of the references."""
    generated, reference = (_tensor_on(rows, inputs.device) for rows in (inputs.generated.manifold, inputs.reference.manifold))
    most = max(len(generated), len(reference))
    result = prc_features_to_metric(generated, reference, save_cpu_ram=most > _MANY_ROWS, verbose=False)
    precision, recall = result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]
    return Value(precision, interval_of_share(precision, len(generated))), Value(recall, interval_of_share(recall, len(reference)))


def _tensor_on(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
