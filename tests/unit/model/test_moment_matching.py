"""The mathematics of distillation by moment matching: times, the jump to an earlier point, and the gradients of both losses."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from model import rng
from model.config import DiffusionConfig, SamplingConfig
from model.diffusion import build_diffusion
from model.moment_matching import Jump, JumpNoise, auxiliary_losses, draw_jump, grid_times, posterior_weights, student_losses
from model.noise_path import RectifiedFlow
from model.samplers import posterior
from model.timesteps import evaluate_path, sampling_times

PATH = RectifiedFlow()
SIZE = 3


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("path", ["rectified_flow", "vp_linear", "vp_cosine"])
def test_the_posterior_of_each_image_is_that_of_its_pair_of_times(path: str) -> None:
    noise_path = build_diffusion(DiffusionConfig.model_validate({"path": path})).path
    pairs = [(1.0, 0.75), (0.5, 0.499), (0.25, 0.003), (0.9, 0.001)]
    t, s = (torch.tensor(times, dtype=torch.float64) for times in zip(*pairs, strict=True))
    z, x, noise = (normal(seed, len(pairs), 3, 2, 2) for seed in range(3))
    taken = Jump(s, *posterior_weights(noise_path, t, s), noise).take(z, x)
    for row, pair in enumerate(pairs):
        at, to = evaluate_path(noise_path, pair)
        mean, deviation = posterior(z[row], x[row], at, to)
        torch.testing.assert_close(taken[row], mean + deviation * noise[row])


@pytest.mark.parametrize("num_steps", [1, 4, 7])
def test_a_student_is_called_at_the_times_of_its_sampler_equally_often(num_steps: int) -> None:
    times = grid_times(rng.uniform(0, rng.Stream.TIME, 0, torch.arange(7000), 1)[:, 0], num_steps)
    visited, counts = times.unique(return_counts=True)
    sampler = SamplingConfig(sampler="ddpm", num_steps=num_steps)
    assert visited.tolist() == pytest.approx(sampling_times(PATH, sampler)[-2::-1])
    assert counts.double() / 7000 == pytest.approx(1 / num_steps, abs=0.02)


def test_a_jump_ends_anywhere_within_one_step_of_the_grid_and_never_at_its_start() -> None:
    t = torch.full((4000,), 0.5, dtype=torch.float64)
    jump = draw_jump(PATH, t, 4, seed=0, step=3, ids=torch.arange(4000), shape=(2, 1, 1))
    assert 0.25 < float(jump.s.min()) < 0.251
    assert 0.499 < float(jump.s.max()) < 0.5
    assert float(jump.s.mean()) == pytest.approx(0.375, abs=0.005)
    assert float(jump.noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(jump.noise.std()) == pytest.approx(1, abs=0.03)


def test_a_jump_is_a_function_of_seed_step_and_position() -> None:
    t = torch.full((8,), 1.0, dtype=torch.float64)
    at_once = draw_jump(PATH, t, 2, seed=5, step=1, ids=torch.arange(8), shape=(3, 1, 1))
    part = draw_jump(PATH, t[4:], 2, seed=5, step=1, ids=torch.arange(4, 8), shape=(3, 1, 1))
    assert torch.equal(part.s, at_once.s[4:])
    assert torch.equal(part.noise, at_once.noise[4:])
    other = draw_jump(PATH, t, 2, seed=5, step=2, ids=torch.arange(8), shape=(3, 1, 1))
    assert not torch.equal(other.s, at_once.s)
    assert not torch.equal(other.noise, at_once.noise)


class Linear:
    """Three linear networks as student, auxiliary network and teacher, and one batch through them."""

    def __init__(self, *, auxiliary_is_teacher: bool = False) -> None:
        self.student, self.auxiliary, self.teacher = (nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64) for _ in range(3))
        for seed, network in enumerate((self.student, self.auxiliary, self.teacher)):
            with torch.no_grad():
                network.weight.copy_(normal(seed, SIZE, SIZE))
        if auxiliary_is_teacher:
            self.auxiliary.load_state_dict(self.teacher.state_dict())
        self.z_t, noise = normal(10, 5, SIZE), normal(11, 5, SIZE)
        t = grid_times(torch.linspace(0.1, 0.9, 5, dtype=torch.float64), 4)
        s = t - 0.1
        self.weight = torch.linspace(0.5, 2, 5, dtype=torch.float64)
        self.x = self.student(self.z_t)
        self.z_s = Jump(s, *posterior_weights(PATH, t, s), noise).take(self.z_t, self.x.detach())
        self.of_auxiliary, self.of_teacher = self.auxiliary(self.z_s), self.teacher(self.z_s)


def test_the_gradient_of_the_student_is_the_weighted_difference_of_both_estimates_at_its_images() -> None:
    """The gradient of w x~ (A - T) for x~ = G z_t, with A - T held fixed, is the sum of w (A - T) z_t over the images."""
    batch = Linear()
    student_losses(batch.x, batch.of_auxiliary, batch.of_teacher, batch.weight).sum().backward()
    direction = batch.z_s @ (batch.auxiliary.weight - batch.teacher.weight).T
    expected = (batch.weight.float().double()[:, None] * direction / SIZE).T @ batch.z_t
    torch.testing.assert_close(batch.student.weight.grad, expected.detach())
    assert batch.auxiliary.weight.grad is None
    assert batch.teacher.weight.grad is None


def test_where_the_auxiliary_network_is_the_teacher_the_student_is_left_alone() -> None:
    batch = Linear(auxiliary_is_teacher=True)
    student_losses(batch.x, batch.of_auxiliary, batch.of_teacher, batch.weight).sum().backward()
    assert batch.student.weight.grad is not None
    assert not batch.student.weight.grad.any()


def test_the_auxiliary_network_is_drawn_to_the_images_of_the_student_and_to_the_teacher() -> None:
    batch = Linear()
    losses = auxiliary_losses(batch.of_auxiliary, batch.x, batch.of_teacher, batch.weight)
    losses.sum().backward()
    errors = 2 * batch.of_auxiliary - batch.x - batch.of_teacher
    expected = (batch.weight.float().double()[:, None] * 2 * errors / SIZE).T @ batch.z_s
    torch.testing.assert_close(batch.auxiliary.weight.grad, expected.detach())
    assert batch.student.weight.grad is None
    assert batch.teacher.weight.grad is None
    both = (batch.x - batch.of_auxiliary) ** 2 + (batch.of_teacher - batch.of_auxiliary) ** 2
    torch.testing.assert_close(losses, batch.weight.float() * both.mean(1))


def test_the_compiled_step_of_a_student_is_the_plain_one_in_one_graph_for_all_steps() -> None:
    jump, counter = JumpNoise(PATH, 4, seed=5), CompileCounterWithBackend("aot_eager")
    compiled, t, ids = jump.compile(backend=counter), torch.tensor([0.25, 0.5, 1.0]), torch.arange(3, 6)
    z_t, x = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in (0, 7):
        for plain, traced in zip(jump(z_t, x, t, ids, torch.tensor(step)), compiled(z_t, x, t, ids, torch.tensor(step)), strict=True):
            torch.testing.assert_close(traced, plain, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 1
