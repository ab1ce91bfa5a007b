"""One optimiser step of a distillation on one rank: the student and its auxiliary network learn from the same images and teacher.

The mathematics is in `moment_matching.py`. Both gradients are those of the networks before the step, so that one pass of each network
serves both: an image costs seven forward passes where turns on two batches would cost ten, and the auxiliary network has not learned from
the images on which it directs the student. Promises: those of `TrainingStep`; the loss of a step is that of the auxiliary network, which is
finite only if all three estimates are.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.compilation import INDUCTOR_OPTIONS, compile_network
from model.config import NetworkConfig, Recipe
from model.dataset import Pack
from model.denoiser import denoiser_with
from model.distributed import World
from model.guard import nan_propagating_sum
from model.meter import Meter
from model.moment_matching import JumpNoise, auxiliary_losses, grid_times, student_losses
from model.noise_path import Times
from model.noised_batch import BatchNoise, step_tensor
from model.optim import build_optimizer
from model.trained_network import TrainedNetwork
from model.training_step import TrainingStep


def without_dropout(network: NetworkConfig) -> NetworkConfig:
    """Return `network` as a student has it: what dropout adds to its estimates would be matched as a property of the images."""
    changes = {"dropout": 0.0, "codec_dropout": 0.0} if network.drops_values else {}
    return network.model_copy(update=changes)


class DistillationStep(TrainingStep):
    """Computes the gradients of student and auxiliary network and applies them."""

    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        network: nn.Module,
        optimizer: torch.optim.AdamW,
        teacher: Mapping[str, Tensor],
        *,
        world: World,
        device: torch.device,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        assert recipe.distill is not None, "a recipe without it has no teacher"
        self._num_steps = recipe.distill.steps
        super().__init__(recipe, pack, network, optimizer, world=world, device=device, meter=meter, clock=clock)
        self.auxiliary, self._teacher = (_copy_of(teacher, recipe, device) for _ in range(2))
        self.auxiliary_optimizer = build_optimizer(self.auxiliary, recipe.optimizer)
        self._auxiliary = TrainedNetwork(self.auxiliary, self.auxiliary_optimizer)
        self._teacher.eval().requires_grad_(requires_grad=False)
        jump = JumpNoise(self.diffusion.path, self._num_steps, recipe.training.seed)
        is_compiled = recipe.training.compile and device.type == "cuda"
        self._jump: Callable[..., tuple[Tensor, Times]] = jump.compile(options=dict(INDUCTOR_OPTIONS)) if is_compiled else jump

    @property
    def _networks(self) -> tuple[TrainedNetwork, ...]:
        return (self._trained, self._auxiliary)

    def _batch_noise(self) -> BatchNoise:
        return BatchNoise(
            self.diffusion,
            self._recipe.training.seed,
            self._recipe.training.horizontal_flip,
            self._recipe.network.augmentation,
            draw_times=partial(grid_times, num_steps=self._num_steps),
        )

    def wrap_network(self) -> None:
        super().wrap_network()
        if self._recipe.training.compile:
            self._teacher = compile_network(self._teacher, by_block=True)

    def _backward(self, step: int, pass_index: int) -> Float[Tensor, " b"]:
        positions, batch = self._next_batch(step, pass_index)
        t, z_t, condition = batch.t, batch.x_t, batch.condition
        last = self._is_last(pass_index)
        with self._trained.no_sync(is_last_pass=last), self._auxiliary.no_sync(is_last_pass=last), self._autocast():
            x = self._estimate(self._trained.forward, z_t, t, condition)
            z_s, s = self._jump(z_t, x.detach(), t, self._ids(positions), step_tensor(step, self._device))
            of_auxiliary = self._estimate(self._auxiliary.forward, z_s, s, condition)
            with torch.no_grad():
                of_teacher = self._estimate(self._teacher, z_s, s, condition)
            # Near the data a weight without a floor, that of the velocity's error, would have no bound. On the straight path sigma is s.
            weight = self.diffusion.image_weight(s.clamp(min=self.diffusion.config.sigma_floor))
            losses = auxiliary_losses(of_auxiliary, x, of_teacher, weight)
            of_student = student_losses(x, of_auxiliary, of_teacher, weight)
            for of_network in (losses, of_student):
                torch.autograd.backward(nan_propagating_sum(of_network) / self._plan.per_rank)
        return losses.detach()

    def _estimate(self, network: nn.Module, z: Float[Tensor, "b ..."], t: Times, condition: tuple[Tensor, ...]) -> Float[Tensor, "b ..."]:
        """Return the clean images that `network` estimates, in float32."""
        return self.diffusion.clean_image(network(z, self.diffusion.path.timestep(t).float(), *condition).float(), z, t)


def _copy_of(weights: Mapping[str, Tensor], recipe: Recipe, device: torch.device) -> nn.Module:
    network = denoiser_with(without_dropout(recipe.network), weights, device)
    network.recompute_activations = recipe.training.activation_checkpointing
    return network
