"""Noise paths: how data turns into noise.

Every path is x_t = alpha(t) x + sigma(t) e with t from 0 (data) to 1 (noise). Schedules are computed in float64.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from model.config import DiffusionConfig

Times = Float64[Tensor, " b"]
NUM_TIMESTEPS = 1000


@runtime_checkable
class NoisePath(Protocol):
    """A Gaussian path from data to noise with falling signal-to-noise ratio.

    The velocity, which a v-prediction estimates, is the path's derivative along its flow time: dx_t / d flow_time(t).
    """

    @property
    def num_timesteps(self) -> int | None:
        """Length of the discrete grid that training visits, or None for continuous time."""

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        """Return the scale of the data and of the noise at `t`."""

    def velocity_weights(self, t: Times) -> tuple[Times, Times]:
        """Return (a, s) such that the velocity is a x + s e."""

    def flow_time(self, t: Times) -> Times:
        """Return the flow time: the variable along which the velocity is the derivative of x_t."""

    def timestep(self, t: Times) -> Times:
        """Return the network's timestep input, in [0, 1000]."""


class RectifiedFlow:
    """The straight path x_t = (1 - t) x + t e (Liu et al. 2022; Lipman et al. 2022), with velocity e - x."""

    num_timesteps: int | None = None

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        return 1 - t, t

    def velocity_weights(self, t: Times) -> tuple[Times, Times]:
        return -torch.ones_like(t), torch.ones_like(t)

    def flow_time(self, t: Times) -> Times:
        return t

    def timestep(self, t: Times) -> Times:
        return t * NUM_TIMESTEPS


class VariancePreserving:
    """The discrete-time path of DDPM (Ho et al. 2020): alpha^2 = alpha_bar, sigma^2 = 1 - alpha_bar, on t = (k + 1) / T, and data at t = 0.

    Between grid points alpha is interpolated linearly. The velocity is alpha e - sigma x (Salimans & Ho 2022), along the angle
    arctan(sigma / alpha).
    """

    def __init__(self, alpha_bar: Float64[Tensor, " timesteps"]) -> None:
        self.num_timesteps: int | None = len(alpha_bar)
        self._steps = len(alpha_bar)
        self.alpha_bar = alpha_bar
        self._alpha = {torch.device("cpu"): torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar.sqrt()])}

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        table = self._table(t.device)
        position = (t * self._steps).clamp(0, self._steps)
        # A grid time such as 7 / 1000 must hit its own entry, whatever the last bit of the product.
        position = torch.where((position - position.round()).abs() < 1e-9, position.round(), position)
        below = position.floor().long().clamp(max=self._steps - 1)
        alpha = torch.lerp(table[below], table[below + 1], position - below)
        return alpha, (1 - alpha**2).clamp(min=0).sqrt()

    def _table(self, device: torch.device) -> Float64[Tensor, " entries"]:
        """Return alpha at data and at each timestep, copied to `device` once: a copy per step would make the host wait."""
        if device not in self._alpha:
            self._alpha[device] = self._alpha[torch.device("cpu")].to(device)
        return self._alpha[device]

    def velocity_weights(self, t: Times) -> tuple[Times, Times]:
        alpha, sigma = self.alpha_sigma(t)
        return -sigma, alpha

    def flow_time(self, t: Times) -> Times:
        alpha, sigma = self.alpha_sigma(t)
        return torch.atan2(sigma, alpha)

    def timestep(self, t: Times) -> Times:
        return (t * self._steps - 1).clamp(min=0) * (NUM_TIMESTEPS / self._steps)


def linear_alpha_bar(
    num_timesteps: int = NUM_TIMESTEPS, beta_first: float = 1e-4, beta_last: float = 0.02
) -> Float64[Tensor, " timesteps"]:
    """Return the cumulative products of 1 - beta for linearly spaced beta (Ho et al. 2020, section 4)."""
    return (1 - torch.linspace(beta_first, beta_last, num_timesteps, dtype=torch.float64)).cumprod(0)


def cosine_alpha_bar(num_timesteps: int = NUM_TIMESTEPS, offset: float = 0.008, beta_max: float = 0.999) -> Float64[Tensor, " timesteps"]:
    """Return the cosine schedule with beta clipped at `beta_max` (Nichol & Dhariwal 2021, equation 17)."""
    t = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    ideal = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
    beta = (1 - ideal[1:] / ideal[:-1]).clamp(max=beta_max)
    return (1 - beta).cumprod(0)


def zero_terminal_snr(alpha_bar: Float64[Tensor, " timesteps"]) -> Float64[Tensor, " timesteps"]:
    """Shift and scale sqrt(alpha_bar) so that the last entry is exactly zero and the first unchanged (Lin et al. 2023, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def build_path(config: DiffusionConfig) -> NoisePath:
    """Return the path that `config` names."""
    match config.path:
        case "rectified_flow":
            return RectifiedFlow()
        case "vp_linear":
            return VariancePreserving(linear_alpha_bar())
        case "vp_cosine":
            return VariancePreserving(cosine_alpha_bar())
        case "vp_zero_snr":
            return VariancePreserving(zero_terminal_snr(linear_alpha_bar()))


def shift_times(t: Times, shift: float) -> Times:
    """Move times toward noise for `shift` > 1, as larger images need (Esser et al. 2024, equation 23)."""
    return t if shift == 1 else t / (t + (1 - t) / shift)  # exactly 0 and 1 at the ends
