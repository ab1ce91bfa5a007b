"""Frechet distance between two sets of features, in float64, with a bootstrap interval.

Promises: equal to torch-fidelity's own result on the same float64 features to 1e-6; zero for a set and itself up to rounding; finite also
with fewer images than features (the symmetric form never leaves the real numbers).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from components.features.moments import Statistics
from components.manifests import NORMAL_QUANTILE, MetricInterval
from model import rng


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, equation 6)."""
    return _distance(a, b, _root(b.covariance))


def bootstrap(features: np.ndarray | Tensor, reference: Statistics, value: float, *, replicates: int, seed: int) -> MetricInterval:
    """Return the 95 % interval of the distance `value` between the images behind `features` and the fixed `reference`.

    The error is the deviation over resamples of the images, put around the value: a resample has fewer different images than the sample, so
    its own distance is too large and only its spread is of use. Resample r is a function of (seed, r).
    """
    rows = torch.as_tensor(features).double()
    root = _root(reference.covariance)
    distances = []
    for replicate in range(replicates):
        words = rng.words(seed, rng.Stream.BOOTSTRAP, replicate, torch.arange(len(rows)), 1)[:, 0]
        weights = torch.bincount(words % len(rows), minlength=len(rows)).double().to(rows.device)
        distances.append(_distance(_weighted_statistics(rows, weights), reference, root))
    std = float(np.std(distances, ddof=1))
    return MetricInterval(low=max(value - NORMAL_QUANTILE * std, 0.0), high=value + NORMAL_QUANTILE * std, std=std)


def _weighted_statistics(rows: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Statistics:
    total = weights.sum()
    mean = weights @ rows / total
    centred = rows - mean
    return Statistics(mean, (centred * weights[:, None]).T @ centred / (total - 1))


def _distance(a: Statistics, b: Statistics, root_b: Float[Tensor, "d d"]) -> float:
    product = root_b @ a.covariance @ root_b
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace)
    return max(distance, 0.0)  # rounding leaves a set and itself as much as 2e-4 below zero where images are fewer than features


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
