"""Loss on held-out images beside that on as many training images, to see memorisation begin.

Promises: both sides get the same times and noise at every measurement, whatever the number of ranks, so that the values of one run may be
compared over its steps; measuring changes nothing in the training.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model import rng
from model.dataset import Pack
from model.diffusion import Diffusion
from model.distributed import World, gather_rows

NUM_TIMES = 8
"""Times at which each image is measured: the middles of as many equal parts of the training's distribution of times."""
_PASS_IMAGES = 64


class HeldOutLoss:
    """The losses of the first `num_images` held-out and training images, or of as many as both have."""

    def __init__(
        self, diffusion: Diffusion, held_out: Pack, training: Pack, num_images: int, *, world: World, device: torch.device
    ) -> None:
        count = min(num_images, len(held_out), len(training))
        self._diffusion = diffusion
        self._images = (held_out.images[:count], training.images[:count])
        self._mine = list(range(world.rank, count, world.size))
        self._count = count
        self._world = world
        self._device = device

    def measure(self, network: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Return the mean losses of `network` and their gap, positive where training images are known better. A collective."""
        sums = torch.stack([self._sum(network, images) for images in self._images])
        held_out, training = (gather_rows(sums[None], self._world).sum(0) / (self._count * NUM_TIMES)).tolist()
        return {"train/held_out_loss": held_out, "train/seen_loss": training, "train/held_out_gap": held_out - training}

    def _sum(self, network: Callable[[Tensor, Tensor], Tensor], images: np.ndarray) -> Float[Tensor, ""]:
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for start in range(0, len(self._mine), _PASS_IMAGES):
            rows = self._mine[start : start + _PASS_IMAGES]
            pixels = torch.from_numpy(np.ascontiguousarray(images[rows])).to(self._device).permute(0, 3, 1, 2)
            total += self._losses(network, pixels.float() / 127.5 - 1, torch.tensor(rows, device=self._device)).sum()
        return total

    def _losses(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, ids: Tensor) -> Float[Tensor, "times b"]:
        losses = []
        for part in range(NUM_TIMES):
            noise = rng.normal(0, rng.Stream.HELD_OUT, part, ids, tuple(x.shape[1:])).contiguous(memory_format=torch.channels_last)
            middle = torch.full((len(x),), (part + 0.5) / NUM_TIMES, dtype=torch.float64, device=self._device)
            t = self._diffusion.draw_times(middle)
            output = network(self._diffusion.add_noise(x, noise, t), self._diffusion.path.timestep(t).float())
            losses.append(self._diffusion.losses(output, x, noise, t).double())
        return torch.stack(losses)
