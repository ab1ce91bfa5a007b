"""Averages of the weights over training: classic and power-function profiles, and their post-hoc recombination.

Promises: `recombine` gives the least-squares average of stored snapshots for any profile width, and says how good it is (Karras et al.
2024, "Analyzing and improving the training dynamics of diffusion models", section 3 and appendix C). Where snapshots are stored is not
known here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from model.config import TrainingConfig
from model.ema import CLASSIC_EMA, EmaName, check_sigma_rel


@lru_cache(maxsize=64)
def gamma_of_sigma_rel(sigma_rel: float) -> float:
    """Return the exponent of the power-function profile whose relative width is `sigma_rel` (appendix C, algorithm 2).

    Raises:
        ValueError: if no profile is that wide (the widest, gamma = 0, has 1 / sqrt(12) = 0.2887).
    """
    check_sigma_rel(sigma_rel)
    inverse_square = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse_square, 12 - inverse_square])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6 * max(1, abs(root.real))))


@dataclass(frozen=True)
class PowerProfile:
    """Average with weight proportional to tau**gamma at training time tau (equation 2)."""

    sigma_rel: float

    @property
    def name(self) -> EmaName:
        return EmaName.of_width(self.sigma_rel)

    def decay(self, step: int) -> float:
        """Return the share of the old average that is kept when the weights after optimiser step `step` >= 1 arrive (equation 127)."""
        return float((1 - 1 / step) ** (gamma_of_sigma_rel(self.sigma_rel) + 1))


@dataclass(frozen=True)
class ClassicProfile:
    """Exponential average with a fixed decay, with the usual warm-up so that a short run is not dominated by its first weights."""

    constant: float
    name: EmaName = CLASSIC_EMA

    def decay(self, step: int) -> float:
        return min(self.constant, step / (step + 9))


Profile = PowerProfile | ClassicProfile


class AveragedWeights:
    """One running average of a list of parameters, updated in place with fused kernels. Kept in float32."""

    def __init__(self, profile: Profile, parameters: Sequence[Tensor]) -> None:
        self.profile = profile
        self.tensors = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], step: int) -> None:
        """Take in the weights after optimiser step `step`, counted from 1."""
        torch._foreach_lerp_(self.tensors, list(parameters), 1 - self.profile.decay(step))


def profile_overlap(step_a: float, gamma_a: float, step_b: float, gamma_b: float) -> float:
    """Return the inner product of two power-function profiles ending at the given times: the integral of p_a(tau) p_b(tau) (appendix C)."""
    total = gamma_a + gamma_b + 1
    log_value = math.log((gamma_a + 1) * (gamma_b + 1) / total) + total * math.log(min(step_a, step_b))
    return math.exp(log_value - (gamma_a + 1) * math.log(step_a) - (gamma_b + 1) * math.log(step_b))


@dataclass(frozen=True)
class Recombination:
    """How snapshots add up to an average: the coefficient of each, and how far the result is from the profile that was asked for.

    `error` is the distance between the two profiles relative to the length of the one asked for; 0 is exact, 1 says nothing.
    """

    coefficients: tuple[float, ...]
    error: float


def profiles_of(training: TrainingConfig) -> list[Profile]:
    """Return the averages of the weights that `training` tracks."""
    profiles: list[Profile] = [PowerProfile(width) for width in training.ema_sigma_rel]
    if training.ema_decay is not None:
        profiles.append(ClassicProfile(training.ema_decay))
    return profiles


def recombine(snapshots: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> Recombination:
    """Return the combination of snapshots (step, sigma_rel) that is nearest to the profile `sigma_rel` ending at `step`.

    Algorithm 3, under the condition that the coefficients add up to 1. Without it the least distance is that of an average which is also
    a little smaller: with few snapshots, all weights of the network would shrink by some percent.

    Raises:
        ValueError: if there is no snapshot, or one lies after `step`.
    """
    if not snapshots or max(s for s, _ in snapshots) > step:
        raise ValueError(f"an average at step {step} needs snapshots from steps up to it, found steps {sorted({s for s, _ in snapshots})}")
    stored = [(s, gamma_of_sigma_rel(width)) for s, width in snapshots]
    target = (step, gamma_of_sigma_rel(sigma_rel))
    gram = np.array([[profile_overlap(*a, *b) for b in stored] for a in stored])
    with_target = np.array([profile_overlap(*a, *target) for a in stored])
    nearest, direction = np.linalg.lstsq(gram, np.stack([with_target, np.ones(len(stored))], axis=1), rcond=None)[0].T
    solution = nearest + direction * (1 - nearest.sum()) / direction.sum()  # Lagrange's condition for a sum of 1
    length_squared = profile_overlap(*target, *target)
    distance_squared = length_squared - 2 * solution @ with_target + solution @ gram @ solution
    return Recombination(tuple(float(c) for c in solution), math.sqrt(max(float(distance_squared), 0.0) / length_squared))
