"""The diffusion algebra: how data turns into noise, what a network predicts of it, and how its errors are weighted.

Everything goes through one interface, x_t = alpha(t) x + sigma(t) e with t from 0 (data) to 1 (noise), so that any prediction works with
any path and any sampler. Schedules are computed in float64. Integrating is not done here, see `model/samplers.py`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from model.config import DiffusionConfig

Times = Float64[Tensor, " b"]
NUM_TIMESTEPS = 1000


@runtime_checkable
class NoisePath(Protocol):
    """A Gaussian path from data to noise with falling signal-to-noise ratio.

    `velocity` is the path's own derivative: dx_t / d flow_time(t) = velocity, which is what a v-prediction means on this path.
    """

    @property
    def num_timesteps(self) -> int | None:
        """Length of the discrete grid that training visits, or None for continuous time."""

    def alpha_sigma(self, t: Times) -> tuple[Times, Times]:
        """Return the scale of the data and of the noise at `t`."""

    def velocity_weights(self, t: Times) -> tuple[Times, Times]:
        """Return (a, s) such that the velocity is a * x + s * e."""

    def flow_time(self, t: Times) -> Times:
        """Return the variable along which the velocity is the derivative of x_t."""

    def timestep(self, t: Times) -> Times:
        """Return the time as the network sees it, in [0, 1000]."""


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
    """Move times toward noise for `shift` > 1, as a larger image needs (Esser et al. 2024, equation 23)."""
    return t if shift == 1 else t / (t + (1 - t) / shift)  # exactly 0 and 1 at the ends


def _expand_per_image(weights: Times, like: Tensor) -> Tensor:
    return weights.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Diffusion:
    """A path together with what the network predicts on it and how its training error is weighted."""

    config: DiffusionConfig
    path: NoisePath

    def draw_times(self, uniform: Times) -> Times:
        """Turn uniform numbers in (0, 1) into training times, on the path's grid if it has one."""
        if self.config.times == "uniform":
            t = uniform
        else:
            t = torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(uniform))
        t = shift_times(t, self.config.time_shift)
        steps = self.path.num_timesteps
        return t if steps is None else (t * steps).ceil().clamp(1, steps) / steps

    def add_noise(self, x: Float[Tensor, "b ..."], e: Float[Tensor, "b ..."], t: Times) -> Float[Tensor, "b ..."]:
        """Return x_t = alpha x + sigma e."""
        alpha, sigma = self.path.alpha_sigma(t)
        return _expand_per_image(alpha, x) * x + _expand_per_image(sigma, x) * e

    def target(self, x: Float[Tensor, "b ..."], e: Float[Tensor, "b ..."], t: Times) -> Float[Tensor, "b ..."]:
        """Return what a perfect network would output."""
        match self.config.prediction:
            case "x":
                return x
            case "eps":
                return e
            case "v":
                a, s = self.path.velocity_weights(t)
                return _expand_per_image(a, x) * x + _expand_per_image(s, x) * e

    def clean_image(self, output: Float[Tensor, "b ..."], x_t: Float[Tensor, "b ..."], t: Times) -> Float[Tensor, "b ..."]:
        """Return the estimate of x that the network's `output` at (`x_t`, `t`) stands for."""
        alpha, sigma = self.path.alpha_sigma(t)
        match self.config.prediction:
            case "x":
                return output
            case "eps":
                return (x_t - _expand_per_image(sigma, x_t) * output) / _expand_per_image(alpha, x_t)
            case "v":
                a, s = self.path.velocity_weights(t)
                determinant = alpha * s - sigma * a
                return _expand_per_image(s / determinant, x_t) * x_t - _expand_per_image(sigma / determinant, x_t) * output

    def image_error_per_output_error(self, t: Times) -> Times:
        """Return |d clean_image / d output|: how much an error of the output weighs as an error of the image."""
        alpha, sigma = self.path.alpha_sigma(t)
        match self.config.prediction:
            case "x":
                return torch.ones_like(t)
            case "eps":
                return sigma / alpha
            case "v":
                a, s = self.path.velocity_weights(t)
                return sigma / (alpha * s - sigma * a)

    def loss_weight(self, t: Times) -> Times:
        """Return the weight on the squared error of the network's output."""
        if self.config.weighting == "none":
            return torch.ones_like(t)
        return self.image_weight(t) * self.image_error_per_output_error(t) ** 2

    def image_weight(self, t: Times) -> Times:
        """Return the weight on the squared error of the image that `weighting` (other than "none") stands for.

        v: the error of the velocity, 1 / sigma^2 up to the path's own scale; as in JiT (Li & He 2025), sigma is floored.
        min_snr: min(SNR, gamma) (Hang et al. 2023). sigmoid: sigmoid(bias - log SNR) on the error of the noise (Kingma & Gao 2023).
        """
        alpha, sigma = self.path.alpha_sigma(t)
        snr = (alpha / sigma) ** 2
        match self.config.weighting:
            case "v":
                a, s = self.path.velocity_weights(t)
                return ((alpha * s - sigma * a) / sigma.clamp(min=self.config.sigma_floor)) ** 2
            case "min_snr":
                return snr.clamp(max=self.config.min_snr_gamma)
            case "sigmoid":
                return math.exp(self.config.sigmoid_bias) * torch.sigmoid(snr.log() - self.config.sigmoid_bias)
            case "none":
                return self.image_error_per_output_error(t) ** -2

    def losses(self, output: Float[Tensor, "b ..."], x: Float[Tensor, "b ..."], e: Float[Tensor, "b ..."], t: Times) -> Float[Tensor, " b"]:
        """Return the weighted mean squared error of each image, in float32."""
        error = (output.float() - self.target(x, e, t).float()).square().flatten(1).mean(1)
        return self.loss_weight(t).float() * error


def build_diffusion(config: DiffusionConfig) -> Diffusion:
    """Return the diffusion that `config` describes."""
    return Diffusion(config=config, path=build_path(config))
