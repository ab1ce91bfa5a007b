"""The samplers: integrate from noise to image with a denoiser that estimates the clean image.

Promises: a sampler calls the denoiser as often as `sampler_table.py` says and never at pure data, and uses no randomness other than
`noise_at`. `sampling.py` wraps a network as a denoiser.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import SamplingConfig
from model.noise_path import NoisePath
from model.sampler_table import SAMPLERS
from model.timesteps import Point, evaluate_path, sampling_times

Images = Float[Tensor, "b c h w"]
Denoise = Callable[[Images, float], Images]
"""Estimate the clean images from noisy ones at time t in [0, 1]."""
NoiseAt = Callable[[int], Images]
"""Return the standard normal noise of a step; a function of the step alone."""
OnStep = Callable[[int, int], None]
"""Called with the progress: (steps done, steps in total)."""

Integrator = Callable[[Denoise, list[Point], Images, SamplingConfig, NoiseAt, OnStep], Images]
"""Carry images from the first point of a trajectory to its last: (denoise, trajectory, x_t, config, noise_at, on_step)."""

_INTEGRATORS: dict[str, Integrator] = {}


def _sampler(name: str) -> Callable[[Integrator], Integrator]:
    """Make the decorated function the sampler called `name` in `SAMPLERS`."""
    assert name in SAMPLERS, f"{name} has no entry in sampler_table.py"

    def register(integrator: Integrator) -> Integrator:
        _INTEGRATORS[name] = integrator
        return integrator

    return register


def _noise_estimate(x_t: Images, x: Images, at: Point) -> Images:
    return (x_t - at.alpha * x) / at.sigma


def _velocity(x_t: Images, x: Images, at: Point) -> Images:
    return at.velocity_x * x + at.velocity_e * _noise_estimate(x_t, x, at)


def posterior(x_t: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"], at: Point, to: Point) -> tuple[Float[Tensor, "*shape"], float]:
    """Return mean and deviation of q(x_s | x_t, x) for s = `to` < t = `at` (Ho et al. 2020, eq. 6 and 7, on any Gaussian path)."""
    scale = at.alpha / to.alpha
    variance = max(at.sigma**2 - (scale * to.sigma) ** 2, 0.0)
    mean = (scale * to.sigma**2 / at.sigma**2) * x_t + (to.alpha * variance / at.sigma**2) * x
    return mean, math.sqrt(variance) * to.sigma / at.sigma


@_sampler("ddpm")
def _ddpm(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """Ancestral sampling with the posterior's own ("fixed small") variance (Ho et al. 2020, algorithm 2)."""
    for i, (at, to) in enumerate(pairwise(trajectory)):
        x_t, deviation = posterior(x_t, denoise(x_t, at.t), at, to)
        if deviation > 0:
            x_t = x_t + deviation * noise_at(i)
        on_step(i + 1, len(trajectory) - 1)
    return x_t


@_sampler("ddim")
def _ddim(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """Keep the estimates of image and noise fixed over the step (Song et al. 2020, equation 12); eta = 1 is ancestral sampling."""
    for i, (at, to) in enumerate(pairwise(trajectory)):
        x = denoise(x_t, at.t)
        deviation = config.eta * posterior(x_t, x, at, to)[1]
        x_t = to.alpha * x + math.sqrt(max(to.sigma**2 - deviation**2, 0.0)) * _noise_estimate(x_t, x, at)
        if deviation > 0:
            x_t = x_t + deviation * noise_at(i)
        on_step(i + 1, len(trajectory) - 1)
    return x_t


@_sampler("euler")
def _euler(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """First-order integration of the probability flow along the path's flow time."""
    for i, (at, to) in enumerate(pairwise(trajectory)):
        x_t = x_t + (to.flow_time - at.flow_time) * _velocity(x_t, denoise(x_t, at.t), at)
        on_step(i + 1, len(trajectory) - 1)
    return x_t


@_sampler("heun")
def _heun(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """Second-order integration of the probability flow; the last step, into pure data, is Euler's (Karras et al. 2022, algorithm 1)."""
    for i, (at, to) in enumerate(pairwise(trajectory)):
        slope = _velocity(x_t, denoise(x_t, at.t), at)
        x_next = x_t + (to.flow_time - at.flow_time) * slope
        if to.sigma > 0:
            slope = (slope + _velocity(x_next, denoise(x_next, to.t), to)) / 2
            x_next = x_t + (to.flow_time - at.flow_time) * slope
        x_t = x_next
        on_step(i + 1, len(trajectory) - 1)
    return x_t


def _first_order(x_t: Images, x: Images, at: Point, to: Point) -> Images:
    """The exponential-integrator step for a constant estimate `x`, which equals DDIM and is finite also at pure noise and pure data."""
    ratio = to.sigma / at.sigma
    return ratio * x_t + (to.alpha - at.alpha * ratio) * x


def _can_extrapolate(previous: Point, at: Point, to: Point) -> bool:
    """Return whether a two-step method may continue the line through `previous` and `at` to `to`.

    Not where log-SNR is infinite, and not over a step that is much longer than the last one, such as the last step of "linspace": a
    difference of two near estimates, extrapolated so far, is worse than a first-order step. The bound 1 + sqrt(2) is a rule of thumb,
    borrowed from the two-step backward formula, which is unstable where steps grow by more (Grigorieff 1983).
    """
    last, next_ = at.half_log_snr - previous.half_log_snr, to.half_log_snr - at.half_log_snr
    return math.isfinite(last) and math.isfinite(next_) and next_ <= (1 + math.sqrt(2)) * last


@_sampler("dpmpp_2m")
def _dpmpp_2m(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """Two-step multistep solver in half log-SNR (Lu et al. 2022, DPM-Solver++, algorithm 2), first order where it cannot extrapolate."""
    previous: tuple[Images, Point] | None = None
    for i, (at, to) in enumerate(pairwise(trajectory)):
        x = denoise(x_t, at.t)
        estimate = x
        if previous is not None and _can_extrapolate(previous[1], at, to):
            ratio = (at.half_log_snr - previous[1].half_log_snr) / (to.half_log_snr - at.half_log_snr)
            estimate = x + (x - previous[0]) / (2 * ratio)
        x_t = _first_order(x_t, estimate, at, to)
        previous = (x, at)
        on_step(i + 1, len(trajectory) - 1)
    return x_t


@_sampler("unipc")
def _unipc(denoise: Denoise, trajectory: list[Point], x_t: Images, config: SamplingConfig, noise_at: NoiseAt, on_step: OnStep) -> Images:
    """Second-order predictor with a corrector that reuses the next evaluation (Zhao et al. 2023, UniPC-2 with B(h) = expm1(-h))."""
    previous: tuple[Images, Point] | None = None
    x = denoise(x_t, trajectory[0].t)
    for i, (at, to) in enumerate(pairwise(trajectory)):
        h = to.half_log_snr - at.half_log_snr
        base = _first_order(x_t, x, at, to)
        if not math.isfinite(h):
            x_t, previous = base, None
            if to.sigma > 0:
                x = denoise(x_t, to.t)
            on_step(i + 1, len(trajectory) - 1)
            continue
        growth = to.alpha * -math.expm1(-h)
        slopes = []
        if previous is not None and _can_extrapolate(previous[1], at, to):
            slopes = [((previous[1].half_log_snr - at.half_log_snr) / h, previous[0])]
        differences = [(other - x) / ratio for ratio, other in slopes]
        predicted = base + growth * 0.5 * differences[0] if differences else base
        x_next = denoise(predicted, to.t)
        weights = _unipc_weights([ratio for ratio, _ in slopes] + [1.0], h)
        x_t = base
        for weight, difference in zip(weights, [*differences, x_next - x], strict=True):
            x_t = x_t + growth * weight * difference
        previous, x = (x, at), x_next
        on_step(i + 1, len(trajectory) - 1)
    return x_t


def _unipc_weights(ratios: list[float], h: float) -> list[float]:
    """Solve UniPC's order conditions (Zhao et al. 2023, theorem 3.1) for one or two differences."""
    if len(ratios) == 1:
        return [0.5]
    growth, term, factorial, right = math.expm1(-h), math.expm1(-h) / -h - 1, 1.0, []
    for order in range(1, len(ratios) + 1):
        right.append(term * factorial / growth)
        factorial *= order + 1
        term = term / -h - 1 / factorial
    left = torch.tensor([[ratio**power for ratio in ratios] for power in range(len(ratios))], dtype=torch.float64)
    return [float(w) for w in torch.linalg.solve(left, torch.tensor(right, dtype=torch.float64))]


def integrate(
    denoise: Denoise,
    path: NoisePath,
    config: SamplingConfig,
    start: Images,
    noise_at: NoiseAt,
    *,
    on_step: OnStep = lambda done, total: None,
) -> Images:
    """Carry `start` (standard normal noise at t = 1) along `path` to an image with the sampler that `config` names."""
    return run_sampler(denoise, evaluate_path(path, sampling_times(path, config)), config, start, noise_at, on_step=on_step)


def run_sampler(
    denoise: Denoise,
    trajectory: list[Point],
    config: SamplingConfig,
    start: Images,
    noise_at: NoiseAt,
    *,
    on_step: OnStep = lambda done, total: None,
) -> Images:
    """Carry `start`, which is at the first of the points of `trajectory`, to the last of them."""
    return _INTEGRATORS[config.sampler](denoise, trajectory, start, config, noise_at, on_step)
