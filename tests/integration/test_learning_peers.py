"""Networks of other libraries in the learning benchmark: their recipes are those libraries' own, and exact where the answer is known."""

import importlib.util
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

PEERS = ["diffusers-unet", "diffusers-dit", "lucidrains-unet"]
ALL = [*PEERS, *(f"{name}-own-recipe" for name in PEERS)]
TIMES = (0.05, 0.2, 0.5, 0.8, 0.95)
HEUN_20 = SamplingConfig(sampler="heun", num_steps=20, seed=0)
INSTALLED = all(importlib.util.find_spec(name) for name in ("diffusers", "denoising_diffusion_pytorch"))


def needs_peers(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a slow test that uses the other libraries."""
    without = pytest.mark.skipif(not INSTALLED, reason="the other libraries are not installed: make bench-tools")
    return pytest.mark.fault(pytest.mark.slow(without(test)))


class Exact(nn.Module):
    """The best network for data that is one image: it knows the schedule, and returns the noise or the velocity."""

    channels, out_dim, self_condition = 3, 3, False

    def __init__(self, image: Tensor, *, velocity: bool) -> None:
        super().__init__()
        self.image, self.velocity = image, velocity
        self.alpha_bar = torch.empty(0)
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, _condition: Tensor | None = None) -> Tensor:
        alpha_bar = self.alpha_bar[t.long()][:, None, None, None]
        noise = (x - alpha_bar.sqrt() * self.image) / (1 - alpha_bar).sqrt()
        output = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * self.image if self.velocity else noise
        return output + 0 * self.unused


class Zero(Exact):
    """A network that has learned nothing."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(1, 3, 1, 1), velocity=False)

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


@needs_peers
@pytest.mark.parametrize("kind", [DiffusersTraining, LucidrainsTraining])
def test_the_exact_network_is_scored_as_exact_and_samples_the_image(tmp_path: Path, kind: type[PeerTraining]) -> None:
    """So times, schedule, target and sampler fit one another: with any of them wrong, the image does not come out."""
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    pack = pack_of(image, tmp_path)
    exact = Exact(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 127.5 - 1, velocity=kind is LucidrainsTraining)
    training = kind(Wrapped(exact), pack, batch_images=1, seed=0, steps=4)
    exact.alpha_bar = training._alpha_bar()
    if isinstance(training, LucidrainsTraining):
        training._average.ema_model.model.alpha_bar = exact.alpha_bar  # a copy, made before
    assert training.errors(image, TIMES) == pytest.approx([0] * len(TIMES), abs=1e-4)
    assert np.abs(training.sample(2, HEUN_20).astype(int) - image).max() <= 1
    mirrored = image[:, :, ::-1].copy()
    difference = np.square((mirrored - image.astype(float)) / 127.5).mean()
    assert training.errors(mirrored, TIMES) == pytest.approx([difference] * len(TIMES), rel=1e-2), "it only knows the other"


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
    training = kind(Wrapped(Exact(torch.zeros(1, 3, 8, 8), velocity=False)), pack_of(images, tmp_path), batch_images=24, seed=0, steps=4)
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
