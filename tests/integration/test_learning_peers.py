"""Networks of other libraries in the learning benchmark: their recipes are those libraries' own, and exact where the answer is known."""

import importlib.util
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.recipes import tiny_pack
from torch import Tensor, nn

from benchmarks.contenders import CONTENDERS, recipe_of
from benchmarks.learning import learn
from benchmarks.learning_run import Size, train_and_sample
from benchmarks.peer_recipes import DiffusersTraining, LucidrainsTraining, PeerTraining, training_of
from benchmarks.small_peers import DiffusersDiT, DiffusersUNet, LucidrainsUNet
from model.config import NetworkConfig, SamplingConfig
from model.dataset import Pack, PackWriter, open_pack
from model.denoiser import num_parameters
from model.noise_path import linear_alpha_bar

PEERS = ["diffusers-unet", "diffusers-dit", "lucidrains-unet"]
ALL = [*PEERS, *(f"{name}-own-recipe" for name in PEERS)]
TIMES = (0.05, 0.2, 0.5, 0.8, 0.95)
HEUN_20 = SamplingConfig(sampler="heun", num_steps=20, seed=0)
INSTALLED = all(importlib.util.find_spec(name) for name in ("diffusers", "denoising_diffusion_pytorch"))


def needs_peers(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a slow test that uses the other libraries."""
    without = pytest.mark.skipif(not INSTALLED, reason="the other libraries are not installed: make bench-tools")
    return pytest.mark.fault(pytest.mark.slow(without(test)))


class Known(nn.Module):
    """The best network for pixels that are drawn from a normal distribution: it returns the noise, or the velocity."""

    channels, out_dim, self_condition = 3, 3, False

    def __init__(self, *, mean: Tensor, deviation: float, velocity: bool) -> None:
        super().__init__()
        self.mean, self.deviation, self.velocity = mean, deviation, velocity
        self.alpha_bar = torch.empty(0)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, _condition: Tensor | None = None) -> Tensor:
        alpha_bar = self.alpha_bar[t.long()][:, None, None, None]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        noise = (x - alpha * self.mean) * sigma / (alpha_bar * self.deviation**2 + sigma**2)
        image = (x - sigma * noise) / alpha
        return (alpha * noise - sigma * image if self.velocity else noise) + 0 * self.unused


class Zero(nn.Module):
    """A network that has learned nothing."""

    channels, out_dim, self_condition = 3, 3, False

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, _condition: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x) * self.unused


class Wrapped(nn.Module):
    """A network as `small_peers.py` wraps it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.network(x, t)
        return output


def pack_of(images: np.ndarray, folder: Path) -> Pack:
    """Return a pack of images (n, h, w, 3), uint8."""
    keys = [f"{at:03d}" for at in range(len(images))]
    with PackWriter(folder, shape=images.shape[1:3], keys=keys, dataset_digest="0" * 64) as add:
        for image in images:
            add(image)
    return open_pack(folder)


def known_training(kind: type[PeerTraining], images: np.ndarray, folder: Path, *, mean: Tensor, deviation: float) -> PeerTraining:
    """Return a training whose network is the best one already."""
    network = Known(mean=mean, deviation=deviation, velocity=kind is LucidrainsTraining)
    training = kind(Wrapped(network), pack_of(images, folder), batch_images=1, seed=0, steps=4)
    network.alpha_bar = training._alpha_bar()
    if isinstance(training, LucidrainsTraining):
        training._average.ema_model.model.alpha_bar = network.alpha_bar  # a copy, made before
    return training


@needs_peers
@pytest.mark.parametrize("kind", [DiffusersTraining, LucidrainsTraining])
def test_a_network_that_knows_the_image_has_no_error(tmp_path: Path, kind: type[PeerTraining]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    mean = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 127.5 - 1
    training = known_training(kind, image, tmp_path, mean=mean, deviation=0.0)
    assert training.errors(image, TIMES) == pytest.approx([0] * len(TIMES), abs=1e-4)
    mirrored = image[:, :, ::-1].copy()
    difference = np.square((mirrored - image.astype(float)) / 127.5).mean()
    assert training.errors(mirrored, TIMES) == pytest.approx([difference] * len(TIMES), rel=1e-2), "it only knows the other"


def spread_by_ddim(alpha_bar: Tensor, timesteps: list[int], deviation: float) -> float:
    """Return the deviation of samples of the best network by DDIM, which maps each pixel linearly (Song et al. 2020, equation 12)."""
    spread = 1.0
    for now, following in itertools.pairwise([*timesteps, -1]):
        before, after = (float(alpha_bar[at]) if at >= 0 else 1.0 for at in (now, following))
        noise = math.sqrt(1 - before) / (before * deviation**2 + 1 - before)
        spread *= math.sqrt(after / before) * (1 - math.sqrt(1 - before) * noise) + math.sqrt(1 - after) * noise
    return spread


@needs_peers
@pytest.mark.parametrize("deviation", [0.1, 0.3])
@pytest.mark.parametrize("kind", [DiffusersTraining, LucidrainsTraining])
def test_samples_have_the_spread_that_ddim_gives_with_as_many_calls_as_heun(
    tmp_path: Path, kind: type[PeerTraining], deviation: float
) -> None:
    """So schedule, target and sampler fit one another: the spread is another one with any of them replaced."""
    empty = np.full((1, 16, 16, 3), 127, dtype=np.uint8)
    training = known_training(kind, empty, tmp_path, mean=torch.zeros(1), deviation=deviation)
    images = training.sample(32, HEUN_20) / 127.5 - 1
    timesteps = [25 * at for at in range(39)] if kind is DiffusersTraining else torch.linspace(-1, 999, 40).int().tolist()[1:]
    expected = spread_by_ddim(training._alpha_bar(), timesteps[::-1], deviation)
    assert images.mean() == pytest.approx(0, abs=0.01)
    assert images.std() == pytest.approx(expected, rel=0.02)


@needs_peers
def test_the_schedule_of_diffusers_is_that_of_ddpm_and_samples_are_drawn_with_the_average(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, image_px=32)
    training = training_of("diffusers-dit-own-recipe", pack, side_px=32, batch_images=2, seed=0, steps=20)
    assert isinstance(training, DiffusersTraining)
    torch.testing.assert_close(training._alpha_bar().double(), linear_alpha_bar(), rtol=1e-4, atol=1e-6)
    for _ in range(3):
        training.step()
    averaged = [parameter.detach() for parameter in training._averaged_network().parameters()]
    torch.testing.assert_close(averaged, training._average.shadow_params, rtol=0, atol=0)
    assert any((mean != now).any() for mean, now in zip(averaged, training._network.parameters(), strict=True))


@needs_peers
@pytest.mark.parametrize("kind", [DiffusersTraining, LucidrainsTraining])
def test_times_of_held_out_errors_are_those_of_equal_noise_on_the_straight_path(tmp_path: Path, kind: type[PeerTraining]) -> None:
    """Of a network whose output is zero, the error on an empty image is that of the noise in its estimate."""
    empty = np.full((64, 16, 16, 3), 127, dtype=np.uint8)
    training = kind(Wrapped(Zero()), pack_of(empty, tmp_path), batch_images=1, seed=0, steps=4)
    over_signal = [(time / (1 - time)) ** 2 for time in TIMES]
    as_velocity = [ratio / (1 + ratio) ** 2 for ratio in over_signal]
    assert training.errors(empty, TIMES) == pytest.approx(over_signal if kind is DiffusersTraining else as_velocity, rel=0.05, abs=2e-4)


@needs_peers
@pytest.mark.parametrize("kind", [DiffusersTraining, LucidrainsTraining])
def test_every_image_is_seen_once_in_an_epoch_and_half_of_them_mirrored(tmp_path: Path, kind: type[PeerTraining]) -> None:
    images = np.zeros((64, 8, 8, 3), dtype=np.uint8)
    images[:, :, 0] = np.arange(64)[:, None, None]
    training = kind(Wrapped(Zero()), pack_of(images, tmp_path), batch_images=24, seed=0, steps=4)
    seen = torch.cat([training._next_images() for _ in range(8)])  # three epochs
    values = ((seen + 1) * 127.5).round()[:, 0, 0, :].long()
    assert values.amax(1).bincount().tolist() == [3] * 64
    is_mirrored = values[:, -1] > 0
    assert 0.3 < is_mirrored.float().mean() < 0.7


@needs_peers
def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_zero(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path, image_px=32)
    training = training_of("diffusers-dit-own-recipe", pack, side_px=32, batch_images=2, seed=0, steps=20)
    assert isinstance(training, PeerTraining)
    rates = []
    for _ in range(20):
        training.step()
        rates.append(training._optimizer.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 2e-5


@needs_peers
@pytest.mark.parametrize("side_px", [32, 64])
@pytest.mark.parametrize("build", [DiffusersUNet, DiffusersDiT, LucidrainsUNet])
def test_peers_are_of_the_size_of_the_demo(build: Callable[[NetworkConfig], nn.Module], side_px: int) -> None:
    demo = CONTENDERS["celebdit-local-share-tenth"]
    config = recipe_of(demo, side_px=side_px, batch_images=4, seed=0, steps=40).network
    peer = build(config)
    assert num_parameters(peer) == pytest.approx(num_parameters(demo.build(config)), rel=0.1)
    assert peer(torch.zeros(2, 3, side_px, side_px), torch.zeros(2)).shape == (2, 3, side_px, side_px)


@needs_peers
def test_all_peers_run_under_both_recipes_at_toy_size(tmp_path: Path) -> None:
    size = Size(32, 4, 1, faces=24, samples=16, sampler="heun", sampler_steps=2, steps=dict.fromkeys(ALL, 3))
    report = learn(size, ALL, [0], tmp_path / "learning.json", sampler_table=False)
    assert [run["contender"] for run in report["runs"]] == ALL
    assert all(run["peak_memory_mb"] > run["memory_before_mb"] > 0 for run in report["runs"])
    assert len({run["loss"] for run in report["runs"]}) == len(ALL)


@pytest.mark.fault
@pytest.mark.slow
def test_the_memory_of_a_training_is_not_that_of_the_process_that_asked_for_it(tmp_path: Path) -> None:
    large = np.ones(3 * 2**30, dtype=np.uint8)
    size = Size(32, 4, 1, faces=8, samples=2, sampler="euler", sampler_steps=1)
    tiny_pack(tmp_path, image_px=32)
    run, (images,) = train_and_sample("celebdit", 0, 2, size, tmp_path, [SamplingConfig(sampler="euler", num_steps=1, seed=0)])
    assert images.shape == (2, 32, 32, 3)
    assert run["peak_memory_mb"] < large.nbytes // 2**20
