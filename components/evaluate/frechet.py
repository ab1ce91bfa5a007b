"""The Frechet distance between two sets of features, in float64, by torch-fidelity's own formula.

Promises: `frechet_distance(a, a)` is zero up to rounding; the name of the metric says what the features are and how many images were drawn.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """Return mean and covariance of `features` (n, d), in float64 (float32, torch-fidelity's default, is off in the sixth digit)."""
    found = fid_features_to_statistics(torch.from_numpy(features.astype(np.float64)))
    return Statistics(mean=found["mu"], covariance=np.atleast_2d(found["sigma"]))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, equation 6)."""
    first, second = ({"mu": s.mean, "sigma": s.covariance} for s in (a, b))
    return float(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])


def metric_name(extractor: str, num_images: int) -> str:
    """Return the metric's key: `eval/fid_50k` is FID on 50,000 images; any other extractor has a name of its own."""
    stem = {"inception-v3-compat": "fid", "random-conv": "fd_randconv"}[extractor]
    count = f"{num_images // 1000}k" if num_images % 1000 == 0 else str(num_images)
    return f"eval/{stem}_{count}"
