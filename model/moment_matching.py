"""Distillation into few sampling steps by moment matching: the times, the jump to a later point of the path, and the two losses.

Follows algorithm 2 of Salimans, Mensink, Heek and Hoogeboom 2024, "Multistep Distillation of Diffusion Models via Moment Matching" (arXiv
2406.04103). A student G of k steps estimates the clean image x~ = G(z_t) of a noisy one; z_s is drawn from q(z_s | z_t, x~) at a time s
that is at most 1/k earlier. An auxiliary network A learns the mean of x~ given z_s, and stays near the teacher T. The student then moves x~
so that this mean becomes that of the data, which is what T estimates.

Differs from the algorithm in two points. There s is drawn first and t = min(s + delta, 1), so that t is anywhere; here t is on the grid of
the student's own sampler, the only times at which it is called, and s is uniform on (0, 1). There the two networks take turns on batches of
their own; see `distillation_step.py`. As there, estimates are not clipped in training; `sampling.clip_x` clips them between the steps of
the sampler. Promises: pure functions; the network's output is interpreted in `diffusion.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from model import rng
from model.noise_path import NoisePath, Times

Estimates = Float[Tensor, "b ..."]


def grid_times(uniform: Times, num_steps: int) -> Times:
    """Turn uniform numbers in (0, 1) into the times at which a student of `num_steps` steps is called: 1/k, 2/k, ..., 1."""
    return (uniform * num_steps).ceil().clamp(1, num_steps) / num_steps


@dataclass(frozen=True)
class Jump:
    """The step of a student from `t` to `s`: z_s = on_z z_t + on_x x + deviation e, per image.

    Mean and deviation of q(z_s | z_t, x) (Ho et al. 2020, equations 6 and 7, on any Gaussian path), as `samplers.posterior` has them for
    one pair of times.
    """

    s: Times
    on_z: Times
    on_x: Times
    deviation: Times
    noise: Estimates

    def take(self, z_t: Estimates, x: Estimates) -> Estimates:
        """Return z_s for the clean images `x`."""
        on_z, on_x, deviation = (_expand(weights, z_t) for weights in (self.on_z, self.on_x, self.deviation))
        return on_z * z_t + on_x * x + deviation * self.noise


def posterior_weights(path: NoisePath, t: Times, s: Times) -> tuple[Times, Times, Times]:
    """Return the weights of z_t and x in the mean of q(z_s | z_t, x), and its deviation, for s < t."""
    alpha_t, sigma_t = path.alpha_sigma(t)
    alpha_s, sigma_s = path.alpha_sigma(s)
    scale = alpha_t / alpha_s
    variance = (sigma_t**2 - (scale * sigma_s) ** 2).clamp(min=0)
    return scale * sigma_s**2 / sigma_t**2, alpha_s * variance / sigma_t**2, variance.sqrt() * sigma_s / sigma_t


def draw_jump(
    path: NoisePath, t: Times, num_steps: int, seed: int, step: rng.Step, ids: Int64[Tensor, " b"], shape: tuple[int, ...]
) -> Jump:
    """Draw the jumps from times `t` of the images at the positions `ids` of the global batch of `step`."""
    s = t - rng.uniform(seed, rng.Stream.JUMP, step, ids, 1)[:, 0] / num_steps
    noise = rng.normal(seed, rng.Stream.POSTERIOR, step, ids, shape).contiguous(memory_format=torch.channels_last)
    return Jump(s, *posterior_weights(path, t, s), noise)


@dataclass(frozen=True)
class JumpNoise:
    """Takes the step of a student of `num_steps` steps, with the noise of `seed`: a pure function, which can be one compiled graph."""

    path: NoisePath
    num_steps: int
    seed: int

    def __call__(
        self, z_t: Estimates, x: Estimates, t: Times, ids: Int64[Tensor, " b"], step: Int64[Tensor, ""]
    ) -> tuple[Estimates, Times]:
        """Return z_s and s for the estimates `x` of the images at the positions `ids` of the global batch of `step`."""
        jump = draw_jump(self.path, t, self.num_steps, self.seed, step, ids, tuple(z_t.shape[1:]))
        return jump.take(z_t, x), jump.s

    def compile(self, **options: Any) -> Any:
        """Return the same function as one compiled graph."""

        def jump(z_t: Tensor, x: Tensor, t: Tensor, ids: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            return self(z_t, x, t, ids, step)

        return torch.compile(jump, fullgraph=True, dynamic=False, **options)


def auxiliary_losses(of_auxiliary: Estimates, x: Estimates, of_teacher: Estimates, weight: Times) -> Float[Tensor, " b"]:
    """Return w (|x~ - A|^2 + |T - A|^2) per image, as means over its values; only A gets a gradient."""
    errors = (x.detach() - of_auxiliary).square() + (of_teacher.detach() - of_auxiliary).square()
    return weight.float() * errors.flatten(1).mean(1)


def student_losses(x: Estimates, of_auxiliary: Estimates, of_teacher: Estimates, weight: Times) -> Float[Tensor, " b"]:
    """Return w x~ (A - T) per image, as means over its values; only x~ gets a gradient, w (A - T).

    The value says nothing: it is a product with a direction, not a distance.
    """
    direction = of_auxiliary.detach() - of_teacher.detach()
    return weight.float() * (x * direction).flatten(1).mean(1)


def _expand(weights: Times, like: Tensor) -> Tensor:
    return weights.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
