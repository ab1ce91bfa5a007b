"""One optimiser step of one rank: read images, add noise, run the network forward and backward, clip, update the weights.

Promises: all random numbers of a step are functions of (seed, step, position in the global batch), whatever the number of ranks and of
accumulation passes; only dropout depends on them. A step does not make the host wait for the device, except in
`first_nonfinite` and `raise_if_nonfinite`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model import rng
from model.augmentation import NUM_PARAMETERS
from model.compilation import INDUCTOR_OPTIONS, compile_network
from model.config import Recipe
from model.dataset import BatchReader, Pack, indices_for_step
from model.diffusion import Diffusion, build_diffusion
from model.distributed import World
from model.guard import Guard, NonFinite, nan_propagating_sum
from model.meter import Meter
from model.noised_batch import BatchNoise, NoisedBatch, step_tensor
from model.optim import clip_gradients, guarded_step, learning_rate, set_learning_rate


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
        self._network = network
        self._parameters = list(network.parameters())
        self._optimizer = optimizer
        self._world = world
        self._device = device
        self._meter = meter
        self._clock = clock
        self._plan = training.batch_plan(world.size)
        self._reader = BatchReader(pack, device, on_device=training.data_on_device)
        self._guard = Guard(self._plan.per_rank, device)
        self._forward: nn.Module = network
        add_noise = BatchNoise(self.diffusion, training.seed, training.horizontal_flip, recipe.network.augmentation)
        # On a CPU compiling takes longer than it saves.
        self._add_noise: Callable[[Tensor, Tensor, Tensor], NoisedBatch] = (
            add_noise.compiled(options=dict(INDUCTOR_OPTIONS)) if training.compile and device.type == "cuda" else add_noise
        )

    def wrap_network(self) -> None:
        """Wrap the forward pass for several ranks and compile it, as the recipe requires."""
        training = self._recipe.training
        # Compiled inside the wrapper, so that gradient accumulation can still skip the wrapper's synchronisation.
        forward = compile_network(self._network, by_block=True) if training.compile else self._network
        if self._world.size > 1:
            ids = [self._device.index] if self._device.type == "cuda" else None
            # A static graph cannot begin inside no_sync (torch 2.15: INTERNAL ASSERT in the reducer), so accumulation goes without.
            forward = DistributedDataParallel(
                forward, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True, static_graph=self._plan.passes == 1
            )
        self._forward = forward
        if self._world.size > 1:
            self._settle_gradient_buckets()

    def _settle_gradient_buckets(self) -> None:
        """Run two passes that change nothing.

        DistributedDataParallel rebuilds its gradient buckets after the first pass. With three ranks or more the order of a sum depends on
        the buckets, so a resumed run would sum its first gradients in another order than an uninterrupted one.
        """
        side, images = self._recipe.network.image_px, self._plan.per_pass
        x = torch.zeros(images, 3, side, side, device=self._device).contiguous(memory_format=torch.channels_last)
        condition = [torch.zeros(images, device=self._device)]
        if self._recipe.network.augmentation > 0:  # in every step, so that its layer has a gradient in every step, if only of zeros
            condition.append(torch.zeros(images, NUM_PARAMETERS, device=self._device))
        for _ in range(2):
            with self._autocast():
                torch.autograd.backward(self._forward(x, *condition).sum())
        self._optimizer.zero_grad(set_to_none=False)

    def run(self, step: int) -> Float[Tensor, ""]:
        """Update the weights with the images of `step` and return the mean loss of those of this rank."""
        set_learning_rate(self._optimizer, learning_rate(self._recipe.optimizer, step))
        self._optimizer.zero_grad(set_to_none=self._plan.passes == 1 and self._world.size == 1)
        losses = torch.cat([self._backward(step, pass_index) for pass_index in range(self._plan.passes)])
        norm = clip_gradients(self._parameters, self._recipe.optimizer.clip_norm)
        self._guard.update(step, losses, norm)
        guarded_step(self._optimizer, self._guard.is_nonfinite)
        mean = losses.mean()
        self._meter.add_step(mean, norm)
        return mean

    def _backward(self, step: int, pass_index: int) -> Float[Tensor, " b"]:
        """Add one pass's share to the gradients and return its losses, detached."""
        training = self._recipe.training
        positions = self._plan.slice_of(self._world.rank, pass_index)
        start_s = self._clock()
        images = self._reader.read(self._indices(step, positions), next_indices=self._next_indices(step, pass_index))
        self._meter.add_wait(self._clock() - start_s)
        ids = torch.arange(positions.start, positions.stop, device=self._device)
        batch = self._add_noise(images, ids, step_tensor(step, self._device))
        if self._recipe.network.drops_values:
            torch.manual_seed(_dropout_seed(training.seed, step, positions.start))
        with self._no_sync(pass_index), self._autocast():
            losses = self.diffusion.losses(self._forward(*batch.inputs), batch.x, batch.noise, batch.t)
            torch.autograd.backward(nan_propagating_sum(losses) / self._plan.per_rank)
        return losses.detach()

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

    def _no_sync(self, pass_index: int) -> AbstractContextManager[None]:
        waits = pass_index + 1 < self._plan.passes and isinstance(self._forward, DistributedDataParallel)
        return self._forward.no_sync() if waits else nullcontext()  # type: ignore[operator]

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
