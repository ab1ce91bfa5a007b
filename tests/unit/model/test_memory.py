"""How many images fit: measured, bounded, and corrected when they do not fit after all."""

import gc

import pytest
import torch
from celebdit_testing.recipes import tiny_network
from torch import Tensor

from model import memory
from model.config import DiffusionConfig, SamplingConfig
from model.denoiser import build_denoiser
from model.generator import Generator
from model.memory import largest_power_of_two, max_images_in_memory

CPU = torch.device("cpu")
KIB = 1024


def generator() -> Generator:
    torch.manual_seed(0)
    network = tiny_network()
    weights = {name: torch.randn_like(value) * 0.05 for name, value in build_denoiser(network).state_dict().items()}
    return Generator(weights, network, DiffusionConfig(), device=CPU)


@pytest.mark.parametrize(("limit", "power"), [(0, 1), (1, 1), (2, 2), (3, 2), (64, 64), (255, 128)])
def test_sizes_are_powers_of_two(limit: int, power: int) -> None:
    assert largest_power_of_two(limit) == power


def test_the_batch_follows_from_the_bytes_that_an_image_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(count: int) -> Tensor:
        buffer = torch.zeros(count, 64, KIB)  # 256 KiB an image, alive together with the next
        grown = buffer + 1
        del buffer
        return grown * 2  # never more than two of them are alive

    monkeypatch.setattr(memory, "free_bytes", lambda device: 64 * 2 * 256 * KIB)
    gc.disable()
    try:
        assert max_images_in_memory(call, CPU) == 32, "half of the free memory, two tensors of 256 KiB an image"
        assert max_images_in_memory(call, CPU, sharers=4) == 8
        assert max_images_in_memory(call, CPU, limit=5) == 4
        monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
        assert max_images_in_memory(call, CPU) == 1
    finally:
        gc.enable()


def test_images_do_not_depend_on_the_batch_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(sampler="heun", num_steps=3)
    drawer = generator()
    images = drawer.draw(sampling, range(10))
    assert drawer.max_images() > 1
    for size in (1, 3, 10):
        assert torch.equal(drawer.draw(sampling, range(10), pass_images=size), images)
    assert torch.equal(drawer.draw(sampling, [7, 2], pass_images=2), images[[7, 2]])


def test_when_memory_runs_out_after_all_half_as_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(sampler="euler", num_steps=2)
    drawer = generator()
    all_at_once, sizes, call = drawer.draw(sampling, range(6), pass_images=6), [], drawer._call

    def crowded(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return call(x, t)

    monkeypatch.setattr(drawer, "_call", crowded)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert torch.equal(drawer.draw(sampling, range(6), pass_images=8), all_at_once)
    assert set(sizes) == {8, 4, 2}
    monkeypatch.setattr(drawer, "_call", lambda x, t: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
    with pytest.raises(torch.OutOfMemoryError):
        drawer.draw(sampling, range(6), pass_images=8)
