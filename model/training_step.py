"""One optimiser step of one rank: read images, add noise, run the network forward and backward, clip, update the weights.

Promises: all random numbers of a step are functions of (seed, step, position in the global batch), whatever the number of ranks and of
accumulation passes; only dropout depends on them. A step does not make the host wait for the device, except in
`first_nonfinite` and `raise_if_nonfinite`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from model import rng
from model.augmentation import NUM_PARAMETERS
from model.compilation import INDUCTOR_OPTIONS
from model.config import Recipe
from model.dataset import BatchReader, Pack, indices_for_step
from model.diffusion import Diffusion, build_diffusion
from model.distributed import World
from model.guard import Guard, NonFinite, nan_propagating_sum
from model.meter import Meter
from model.noised_batch import BatchNoise, NoisedBatch, step_tensor
from model.optim import learning_rate
from model.trained_network import TrainedNetwork, begins_without_gradients


def autocast(device: torch.device, *, precision: str) -> AbstractContextManager[None]:
    """Return the context in which the network runs in `precision`, a value of `TrainingConfig.precision`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


class TrainingStep:
    """Computes the gradients of one step and applies them to the parameters of `network`."""

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        network: nn.Module,
        optimizer: torch.optim.AdamW,
        *,
        world: World,
        device: torch.device,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        training = recipe.training
        self.diffusion: Diffusion = build_diffusion(recipe.diffusion)
        self._recipe = recipe
        self._pack = pack
        self._trained = TrainedNetwork(network, optimizer)
        self._world = world
        self._device = device
        self._meter = meter
        self._clock = clock
        self._plan = training.batch_plan(world.size)
        self._reader = BatchReader(pack, device, on_device=training.data_on_device)
        self._guard = Guard(self._plan.per_rank, device)
        add_noise = self._batch_noise()
        # On a CPU compiling takes longer than it saves.
        self._add_noise: Callable[[Tensor, Tensor, Tensor], NoisedBatch] = (
            add_noise.compile(options=dict(INDUCTOR_OPTIONS)) if training.compile and device.type == "cuda" else add_noise
        )

    def _batch_noise(self) -> BatchNoise:
        """Return what makes the noised batches of this step."""
        training = self._recipe.training
        return BatchNoise(self.diffusion, training.seed, training.horizontal_flip, self._recipe.network.augmentation)

    @property
    def _networks(self) -> tuple[TrainedNetwork, ...]:
        """The networks that a step updates; the norm of the first one's gradient is reported."""
        return (self._trained,)

    def wrap_network(self) -> None:
        """Wrap the forward pass for several ranks and compile it, as the recipe requires."""
        for network in self._networks:
            network.wrap(self._world, self._device, self._plan, compiled=self._recipe.training.compile)
            if self._world.size > 1:
                network.settle_gradient_buckets(self._zeros(), self._autocast)

    def _zeros(self) -> tuple[Tensor, ...]:
        """Return arguments of the network for a pass without images."""
        images, side = self._plan.per_pass, self._recipe.network.image_px
        x = torch.zeros(images, 3, side, side, device=self._device).contiguous(memory_format=torch.channels_last)
        # Parameters are passed in every step, so that their layer has a gradient in every step, if only of zeros.
        shapes = [(images,), (images, NUM_PARAMETERS)] if self._recipe.network.augmentation > 0 else [(images,)]
        return (x, *(torch.zeros(shape, device=self._device) for shape in shapes))

    def run(self, step: int) -> Float[Tensor, ""]:
        """Update the weights with the images of `step` and return the mean loss of those of this rank."""
        rate = learning_rate(self._recipe.optimizer, step)
        for network in self._networks:
            network.begin_step(rate, set_to_none=begins_without_gradients(self._plan, self._world, self._device))
        losses = torch.cat([self._backward(step, pass_index) for pass_index in range(self._plan.passes)])
        norms = [network.clip(self._recipe.optimizer.clip_norm) for network in self._networks]
        self._guard.update(step, losses, sum(norms[1:], norms[0]))
        for network in self._networks:
            network.update(self._guard.is_nonfinite)
        mean = losses.mean()
        self._meter.add_step(mean, norms[0])
        return mean

    def _backward(self, step: int, pass_index: int) -> Float[Tensor, " b"]:
        """Add one pass's share to the gradients and return its losses, detached."""
        positions, batch = self._next_batch(step, pass_index)
        if self._recipe.network.drops_values:
            torch.manual_seed(_dropout_seed(self._recipe.training.seed, step, positions.start))
        with self._trained.no_sync(is_last_pass=self._is_last(pass_index)), self._autocast():
            losses = self.diffusion.losses(self._trained.forward(*batch.inputs), batch.x, batch.noise, batch.t)
            torch.autograd.backward(nan_propagating_sum(losses) / self._plan.per_rank)
        return losses.detach()

    def _next_batch(self, step: int, pass_index: int) -> tuple[slice, NoisedBatch]:
        """Return the positions of a pass in the global batch, and its noised images."""
        positions = self._plan.slice_of(self._world.rank, pass_index)
        start_s = self._clock()
        images = self._reader.read(self._indices(step, positions), next_indices=self._next_indices(step, pass_index))
        self._meter.add_wait(self._clock() - start_s)
        return positions, self._add_noise(images, self._ids(positions), step_tensor(step, self._device))

    def _ids(self, positions: slice) -> Int64[Tensor, " b"]:
        return torch.arange(positions.start, positions.stop, device=self._device)

    def _is_last(self, pass_index: int) -> bool:
        return pass_index + 1 == self._plan.passes

    def _indices(self, step: int, positions: slice) -> np.ndarray:
        training = self._recipe.training
        indices = indices_for_step(seed=training.seed, step=step, batch_images=training.batch_images, num_images=len(self._pack))
        return indices[positions]

    def _next_indices(self, step: int, pass_index: int) -> np.ndarray | None:
        """Return the indices of the pass after this one, or None after the last pass of the run."""
        if pass_index + 1 < self._plan.passes:
            return self._indices(step, self._plan.slice_of(self._world.rank, pass_index + 1))
        if step + 1 >= self._recipe.training.total_steps:
            return None
        return self._indices(step + 1, self._plan.slice_of(self._world.rank, 0))

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self._device, precision=self._recipe.training.precision)

    def first_nonfinite(self) -> tuple[int, list[int]] | None:
        """Return the first step with a non-finite value and the positions of its losses on this rank, or None; waits for the device."""
        return self._guard.first_nonfinite()

    def raise_if_nonfinite(self) -> None:
        """Wait for the device and check all steps so far.

        Raises:
            NonFinite: naming the first step with a non-finite value, and its images on this rank.
        """
        first = self.first_nonfinite()
        if first is not None:
            step, positions = first
            of_rank = slice(self._world.rank * self._plan.per_rank, (self._world.rank + 1) * self._plan.per_rank)
            raise NonFinite(step, [self._pack.keys[i] for i in self._indices(step, of_rank)[positions]])


def _dropout_seed(seed: int, step: int, position: int) -> int:
    drawn = rng.words(seed, rng.Stream.DROPOUT, step, torch.tensor([position]), 2)[0].tolist()
    return int(drawn[0] << 31 ^ drawn[1])
