"""The gradients of one distillation step, computed again without it: which images, times, noise, networks and weights meet where."""

from pathlib import Path

import pytest
import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe, tiny_student
from torch import Tensor, nn

from model import rng
from model.config import DiffusionConfig, OptimizerConfig, Recipe
from model.dataset import Pack, indices_for_step
from model.denoiser import Denoiser, build_denoiser
from model.distributed import World
from model.interfaces import Outputs
from model.noise_path import RectifiedFlow
from model.samplers import posterior
from model.timesteps import evaluate_path
from model.trainer import Placement, Trainer

STEPS, SIGMA_FLOOR = 3, 0.05
SEED = 3
"""One image of its first step is below the floor."""


def moved(network: nn.Module, seed: int) -> None:
    """Move weights away from where they are, so that no two networks agree and most gradients are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def copy_of(network: nn.Module, recipe: Recipe) -> Denoiser:
    copied = build_denoiser(recipe.network)
    copied.load_state_dict(network.state_dict())
    assert isinstance(copied, Denoiser)
    return copied


def clean_image(network: Denoiser, recipe: Recipe, z: Tensor, t: float) -> Tensor:
    output: Tensor = network(z, torch.tensor([1000 * t]))
    return output if recipe.diffusion.prediction == "x" else z - t * output


def expected_losses(recipe: Recipe, pack: Pack, student: Denoiser, auxiliary: Denoiser, teacher: Denoiser) -> tuple[Tensor, Tensor]:
    """Return the losses of student and auxiliary network in the first step, image by image from the definitions."""
    seed, count = recipe.training.seed, recipe.training.batch_images
    indices = indices_for_step(seed=seed, step=0, batch_images=count, num_images=len(pack))
    of_student, of_auxiliary, times = [], [], []
    for at in range(count):
        ids = torch.tensor([at])

        def uniform(stream: rng.Stream, ids: Tensor = ids) -> float:
            return float(rng.uniform(seed, stream, 0, ids, 1))

        x = torch.from_numpy(pack.images[indices[at]].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        if bool(rng.coin(seed, rng.Stream.FLIP, 0, ids)):
            x = x.flip(-1)
        shape = tuple(x.shape[1:])
        t = min(k for k in (1 / 3, 2 / 3, 1.0) if uniform(rng.Stream.TIME) <= k)
        s = t - uniform(rng.Stream.JUMP) / STEPS
        times.append(s)
        z_t = (1 - t) * x + t * rng.normal(seed, rng.Stream.NOISE, 0, ids, shape)
        estimate = clean_image(student, recipe, z_t, t)
        mean, deviation = posterior(z_t, estimate.detach(), *evaluate_path(RectifiedFlow(), [t, s]))
        z_s = mean + deviation * rng.normal(seed, rng.Stream.POSTERIOR, 0, ids, shape)
        auxiliary_says = clean_image(auxiliary, recipe, z_s, s)
        with torch.no_grad():
            teacher_says = clean_image(teacher, recipe, z_s, s)
        weight = 1 / max(s, SIGMA_FLOOR) ** 2
        errors = (estimate.detach() - auxiliary_says).square().mean() + (teacher_says - auxiliary_says).square().mean()
        of_auxiliary.append(weight * errors)
        of_student.append(weight * (estimate * (auxiliary_says - teacher_says).detach()).mean())
    assert min(times) < SIGMA_FLOOR, "otherwise the floor is not tested"
    return torch.stack(of_student).mean(), torch.stack(of_auxiliary).mean()


@pytest.mark.parametrize("microbatch_images", [None, 4])
@pytest.mark.parametrize("diffusion", [{}, {"prediction": "v", "weighting": "none"}], ids=str)
def test_the_gradients_of_a_step_are_those_of_the_definitions(
    tmp_path: Path, microbatch_images: int | None, diffusion: dict[str, str]
) -> None:
    pack, unclipped = tiny_pack(tmp_path / "pack"), OptimizerConfig(clip_norm=1e9)
    recipe = tiny_student(steps=STEPS, total_steps=1, microbatch_images=microbatch_images, seed=SEED)
    recipe = recipe.model_copy(update={"optimizer": unclipped, "diffusion": DiffusionConfig.model_validate(diffusion)})
    teacher = build_denoiser(tiny_recipe().network, seed=1)
    assert isinstance(teacher, Denoiser)
    moved(teacher, 0)
    outputs = Outputs(MemoryRecorder(), LocalSink(tmp_path / "run"))
    trainer = Trainer(recipe, pack, Placement(World(), torch.device("cpu")), outputs, teacher=teacher.state_dict())
    auxiliary: nn.Module = trainer.training_step.auxiliary  # type: ignore[attr-defined]
    moved(trainer.network, 1)
    moved(auxiliary, 2)
    student_copy, auxiliary_copy = copy_of(trainer.network, recipe), copy_of(auxiliary, recipe)
    losses = expected_losses(recipe, pack, student_copy, auxiliary_copy, teacher)
    torch.autograd.backward(losses)
    trainer.run()
    for network, expected in ((trainer.network, student_copy), (auxiliary, auxiliary_copy)):
        largest = max(float(parameter.grad.abs().max()) for parameter in expected.parameters() if parameter.grad is not None)
        assert largest > 1e-3, "the comparison would be of nothing"
        for (name, parameter), other in zip(network.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(
                parameter.grad, other.grad, rtol=1e-3, atol=1e-5 * largest, msg=lambda text, name=name: f"{name}: {text}"
            )
