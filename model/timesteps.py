"""The times of a path that a sampler visits, and the schedule at each.

Promises: times fall from noise to data, and all scalars of the schedule are computed in float64 on the host before the first step, so no
step waits for the device. The steps between times are in `samplers.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.config import SamplingConfig
from model.noise_path import NoisePath, shift_times


@dataclass(frozen=True)
class Point:
    """A time of the path with the schedule at it."""

    t: float
    alpha: float
    sigma: float
    flow_time: float
    velocity_x: float
    velocity_e: float

    @property
    def half_log_snr(self) -> float:
        """log(alpha / sigma), the time variable of DPM-Solver; infinite at pure data and pure noise."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf


def evaluate_path(path: NoisePath, times: Sequence[float]) -> list[Point]:
    """Evaluate `path` at `times`."""
    t = torch.tensor(times, dtype=torch.float64)
    alpha, sigma = path.alpha_sigma(t)
    a, s = path.velocity_weights(t)
    columns = (t, alpha, sigma, path.flow_time(t), a, s)
    return [Point(*row) for row in torch.stack([c.double() for c in columns], dim=1).tolist()]


def sampling_times(path: NoisePath, config: SamplingConfig) -> list[float]:
    """Return num_steps + 1 falling times, the last one 0.

    On a discrete path these are timesteps k as t = (k + 1) / T, spaced as Lin et al. 2023, table 2; on a continuous one they are even.

    Raises:
        ValueError: if the path has fewer timesteps than `config.num_steps`.
    """
    n, total = config.num_steps, path.num_timesteps
    if total is None:
        even = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        return [float(t) for t in shift_times(even, config.time_shift)]
    if n > total:
        raise ValueError(f"num_steps {n} must not exceed the {total} timesteps of the path")
    counts = torch.arange(n, dtype=torch.float64)
    match config.spacing:
        case "linspace":
            k = torch.linspace(total - 1, 0, n, dtype=torch.float64).round()
        case "leading":
            k = (counts * (total // n)).flip(0)
        case "trailing":
            k = (total - counts * (total / n)).round() - 1
    times = shift_times((k + 1) / total, config.time_shift)
    return [float(t) for t in times] + [0.0]
