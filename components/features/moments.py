"""Mean and covariance of features."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features, float64."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


def statistics(features: np.ndarray | Tensor) -> Statistics:
    """Return mean and covariance of `features` (n, d), in float64 (float32, torch-fidelity's default, is off in the sixth digit)."""
    rows = torch.as_tensor(features).double()
    mean = rows.mean(0)
    centred = rows - mean
    return Statistics(mean, centred.T @ centred / (len(rows) - 1))
