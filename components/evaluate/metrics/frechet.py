"""The Frechet distance between two sets of features, in float64, and how sure of it one can be.

Promises: equal to torch-fidelity's own result on the same float64 features to 1e-6; zero for a set and itself up to rounding, finite also
with fewer images than features (the symmetric form never leaves the real numbers). What the features are is not known here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model import rng

_QUANTILE = 1.959964
"""Of the normal distribution, for an interval of 95 %."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features, float64."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


@dataclass(frozen=True)
class Interval:
    """How far a value may be off: its standard error and the 95 % interval."""

    low: float
    high: float
    std: float


def statistics(features: np.ndarray | Tensor) -> Statistics:
    """Return mean and covariance of `features` (n, d), in float64 (float32, torch-fidelity's default, is off in the sixth digit)."""
    rows = torch.as_tensor(features).double()
    mean = rows.mean(0)
    centred = rows - mean
    return Statistics(mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, equation 6)."""
    return _distance(a, b, _root(b.covariance))


def bootstrap(features: np.ndarray | Tensor, reference: Statistics, value: float, *, replicates: int, seed: int) -> Interval:
    """Return the 95 % interval of the distance `value` between the images behind `features` and the fixed `reference`.

    The error is the deviation over resamples of the images, put around the value: a resample has fewer different images than the sample, so
    its own distance is too large and only its spread is of use. Resample r is a function of (seed, r).
    """
    rows = torch.as_tensor(features).double()
    root = _root(reference.covariance)
    found = []
    for replicate in range(replicates):
        words = rng.words(seed, rng.Stream.BOOTSTRAP, replicate, torch.arange(len(rows)), 1)[:, 0]
        weights = torch.bincount(words % len(rows), minlength=len(rows)).double().to(rows.device)
        found.append(_distance(_weighted(rows, weights), reference, root))
    std = float(np.std(found, ddof=1))
    return Interval(low=max(value - _QUANTILE * std, 0.0), high=value + _QUANTILE * std, std=std)


def of_share(share: float, trials: int) -> Interval:
    """Return the 95 % interval of a share of independent trials (Wilson 1927), which is not empty at 0 and 1 either."""
    spread = _QUANTILE**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Interval(low=max(centre - half, 0.0), high=min(centre + half, 1.0), std=half / _QUANTILE)


def _weighted(rows: Float[Tensor, "n d"], weights: Float[Tensor, " n"]) -> Statistics:
    total = weights.sum()
    mean = weights @ rows / total
    centred = rows - mean
    return Statistics(mean, (centred * weights[:, None]).T @ centred / (total - 1))


def _distance(a: Statistics, b: Statistics, root_b: Float[Tensor, "d d"]) -> float:
    product = root_b @ a.covariance @ root_b
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    found = float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace)
    return max(found, 0.0)  # rounding leaves a set and itself as much as 2e-4 below zero where images are fewer than features


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
