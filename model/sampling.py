"""Sample images by index from a network: estimates of the clean image, autoguidance, and conversion to uint8.

Promises: image i is a function of (denoiser, seed, i), never of its batch. The steps from noise to image are in `samplers.py`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from model import rng
from model.config import SamplingConfig
from model.diffusion import Diffusion
from model.noise_path import NoisePath
from model.samplers import Denoise, Images, OnStep, integrate


def denoiser_of(network: Callable[[Tensor, Tensor], Tensor], diffusion: Diffusion, *, clip_x: bool) -> Denoise:
    """Wrap a network as an estimator of the clean image, clipped to [-1, 1] with `clip_x`."""

    def denoise(x_t: Images, t: float) -> Images:
        times = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
        return diffusion.clean_image(network(x_t, diffusion.path.timestep(times).to(x_t.dtype)), x_t, times)

    return clip_estimates(denoise) if clip_x else denoise


def clip_estimates(denoise: Denoise) -> Denoise:
    """Keep the estimates of `denoise` in [-1, 1], where images are."""
    return lambda x_t, t: denoise(x_t, t).clamp(-1, 1)


def autoguide(good: Denoise, bad: Denoise, weight: float, *, t_low: float = 0.0, t_high: float = 1.0) -> Denoise:
    """Push the estimate away from that of a weaker version of the model (Karras et al. 2024, "Guiding a diffusion model with a bad
    version of itself", equation 3, which on any path is the same for image, noise and velocity).

    `weight` 1 is `good` alone. Guidance applies within an interval of times, ends included (Kynkaanniemi et al. 2024). The result
    extrapolates beyond both estimates: pass denoisers that do not clip, and wrap the result in `clip_estimates`.
    """

    def denoise(x_t: Images, t: float) -> Images:
        x = good(x_t, t)
        return x if weight == 1 or not t_low <= t <= t_high else torch.lerp(bad(x_t, t), x, weight)

    return denoise


@torch.inference_mode()
def sample(
    denoise: Denoise,
    path: NoisePath,
    config: SamplingConfig,
    indices: Int64[Tensor, " b"],
    image_px: int,
    *,
    on_step: OnStep = lambda done, total: None,
) -> Images:
    """Sample the images with `indices`, in [-1, 1] up to the sampler's overshoot. Image i depends on `config.seed` and i alone."""
    shape = (3, image_px, image_px)

    def noise_at(step: int) -> Images:
        return rng.normal(config.seed, rng.Stream.SAMPLE, step + 1, indices, shape)

    return integrate(denoise, path, config, noise_at(-1), noise_at, on_step=on_step)


def to_uint8(images: Images) -> UInt8[Tensor, "b c h w"]:
    """Convert [-1, 1] to 0..255: clip, then round to nearest."""
    return (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
