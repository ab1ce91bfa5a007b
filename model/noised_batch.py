"""What one pass feeds to the network: flipped, augmented and normalised images, noise, times and the noisy images, from uint8 images.

Promises: a pure function of (images, seed, step, positions); as a compiled graph it is the same one for all steps, and its random words are
those of the plain function bit for bit. On CUDA the plain function takes 163 kernels and 116 MB of memory traffic per image of 256 pixels,
the compiled one a few kernels and the images themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from model import rng
from model.augmentation import Augmentation
from model.diffusion import Diffusion
from model.noise_path import Times


class NoisedBatch(NamedTuple):
    """The images of a pass in [-1, 1], their noise and times, and what the network gets of them."""

    x: Float[Tensor, "b 3 h w"]
    noise: Float[Tensor, "b 3 h w"]
    t: Float[Tensor, " b"]
    x_t: Float[Tensor, "b 3 h w"]
    timestep: Float[Tensor, " b"]
    augmentation: Float[Tensor, "b parameters"] | None = None

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """What the network gets besides the noisy images and their timesteps."""
        return () if self.augmentation is None else (self.augmentation,)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of the network."""
        return (self.x_t, self.timestep, *self.condition)


@dataclass(frozen=True)
class BatchNoise:
    """Makes noised batches."""

    diffusion: Diffusion
    seed: int
    horizontal_flip: bool
    augmentation: float = 0.0
    """Probability of each kind of transformation."""
    draw_times: Callable[[Times], Times] | None = None
    """Turns uniform numbers into times. Default: those of the diffusion."""

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], ids: Int64[Tensor, " b"], step: Int64[Tensor, ""]) -> NoisedBatch:
        """Return the batch of `images`, which are at the positions `ids` of the global batch of `step`."""
        if self.horizontal_flip:
            flip = rng.coin(self.seed, rng.Stream.FLIP, step, ids)
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        x, parameters = images.to(torch.float32) / 127.5 - 1, None
        if self.augmentation > 0:
            transformation = Augmentation(self.seed, self.augmentation).draw(ids, step)
            x, parameters = transformation.apply(x), transformation.parameters
        noise = rng.normal(self.seed, rng.Stream.NOISE, step, ids, tuple(x.shape[1:])).contiguous(memory_format=torch.channels_last)
        draw_times = self.draw_times or self.diffusion.draw_times
        t = draw_times(rng.uniform(self.seed, rng.Stream.TIME, step, ids, 1)[:, 0])
        return NoisedBatch(x, noise, t, self.diffusion.add_noise(x, noise, t), self.diffusion.path.timestep(t).float(), parameters)

    def compile(self, **options: Any) -> Any:
        """Return the same function as one compiled graph."""

        def noised_batch(images: Tensor, ids: Tensor, step: Tensor) -> NoisedBatch:
            return self(images, ids, step)

        return torch.compile(noised_batch, fullgraph=True, dynamic=False, **options)


def step_tensor(step: int, device: torch.device) -> Int64[Tensor, ""]:
    """Return `step` on the device, filled there: a Python number would be a constant of the graph, and a copy would make the host wait."""
    return torch.full((), step, dtype=torch.int64, device=device)
