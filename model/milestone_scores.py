"""Draw samples at a milestone of a training and score them, divided over the ranks.

Promises: at every milestone the same images are drawn from the same noise; scoring changes nothing in the training; of the images only one
pass is in memory at once, of all of them the features; the ranks meet after each pass and measure the same, so that none waits for another
for longer than a pass takes; a request to stop ends it after a pass. What is measured is in `interfaces.Scorer`.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from model.distributed import World, gather_rows
from model.interfaces import Scorer

Draw = Callable[[Int64[Tensor, " b"]], UInt8[Tensor, "b 3 h w"]]
"""Returns the images with some indices; image i is drawn from the same noise in every call."""


def shared_passes(count: int, pass_images: int, world: World) -> Iterator[Int64[Tensor, " b"]]:
    """Yield the indices of each pass of this rank; the rows of all ranks, gathered pass after pass and cut to `count`, are in order.

    Every rank has as many passes of equal size; indices beyond the last one repeat it.
    """
    size = min(pass_images, -(-count // world.size))
    for start in range(0, count, size * world.size):
        first = start + world.rank * size
        yield torch.arange(first, first + size).clamp(max=count - 1)


class MilestoneScores:
    """The scores of `scorer`, drawn `pass_images` at a time on each rank."""

    def __init__(self, scorer: Scorer, pass_images: int, *, world: World, device: torch.device) -> None:
        self._scorer = scorer
        self._pass_images = pass_images
        self._world = world
        self._device = device

    def measure(self, draw: Draw, *, stopped: Callable[[], bool], on_images: Callable[[int, int], None]) -> Mapping[str, float] | None:
        """Return the scores of the images that `draw` draws, or None if `stopped`, which is called after each pass. A collective.

        `on_images` is called with the progress: images drawn by all ranks, and in total.
        """
        count, rows = self._scorer.num_images, list[Float[Tensor, "b d"]]()
        for indices in shared_passes(count, self._pass_images, self._world):
            rows.append(gather_rows(self._scorer.features(draw(indices.to(self._device))), self._world))
            on_images(min(count, len(rows) * len(rows[0])), count)
            if stopped():
                return None
        return self._scorer.scores(torch.cat(rows)[:count])
