"""The training objective: what a network predicts of a noisy image, and how its errors are weighted.

Works with any noise path x_t = alpha(t) x + sigma(t) e, so that any prediction can be combined with any path and any sampler. Does not
sample; see `samplers.py`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import DiffusionConfig
from model.noise_path import NoisePath, Times, build_path, shift_times


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
        elif self.config.uniform_share == 0:
            t = self._logit_normal(uniform)
        else:
            share = self.config.uniform_share
            rest = ((uniform - share) / (1 - share)).clamp(min=2.0**-33)  # the smallest uniform number: 0 would be time 0
            t = torch.where(uniform < share, uniform / share, self._logit_normal(rest))
        t = shift_times(t, self.config.time_shift)
        steps = self.path.num_timesteps
        return t if steps is None else (t * steps).ceil().clamp(1, steps) / steps

    def _logit_normal(self, uniform: Times) -> Times:
        return torch.sigmoid(self.config.logit_mean + self.config.logit_std * torch.special.ndtri(uniform))

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
        """Return the estimate of x that corresponds to the network's `output` at (`x_t`, `t`)."""
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
        """Return |d clean_image / d output|, the factor from an error of the output to the error of the image."""
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
        """Return the weight on the squared error of the image that `config.weighting` defines.

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
