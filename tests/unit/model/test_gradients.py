"""The gradient of a batch does not depend on how it is shared out, and no step waits for the device."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from celebdit_testing.gradients import CPU, gradients, rank_main, train_both_ways
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe
from torch.utils._python_dispatch import TorchDispatchMode

from components.system.ports import free_port
from model.batching import plan_batch
from model.distributed import World
from model.interfaces import Outputs
from model.trained_network import begins_without_gradients
from model.trainer import Placement, Trainer


@pytest.mark.fault
@pytest.mark.slow
def test_two_ranks_and_accumulation_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "pack", count=40)
    whole_batch = gradients(tmp_path, World(), None)
    ways = {"4 passes of 8": gradients(tmp_path, World(), 8)}
    # The first rank is this process: starting another takes as long as the whole test.
    port = free_port()
    second = mp.get_context("spawn").Process(target=rank_main, args=(1, str(tmp_path), port))
    second.start()
    with patch.dict(os.environ):
        rank_main(0, str(tmp_path), port)
    second.join(60)
    assert second.exitcode == 0
    for rank in (0, 1):
        ways[f"rank {rank} of 2"] = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
    # Some gradients are zero but for rounding (a bias before a normalisation), so the tolerance is that of the largest.
    largest = max(float(gradient.abs().max()) for gradient in whole_batch.values())
    assert largest > 0
    for way, actual in ways.items():
        assert actual.keys() == whole_batch.keys()
        for name, gradient in actual.items():
            torch.testing.assert_close(
                gradient, whole_batch[name], rtol=1e-4, atol=1e-6 * largest, msg=lambda text, n=name, w=way: f"{w}, {n}: {text}"
            )


@pytest.mark.fault
@pytest.mark.slow
def test_two_ranks_have_the_same_bits_whether_steps_begin_with_zeros_or_without_gradients(tmp_path: Path) -> None:
    tiny_pack(tmp_path / "pack", count=40)
    second = mp.get_context("spawn").Process(target=train_both_ways, args=(1, str(tmp_path)))
    second.start()
    train_both_ways(0, str(tmp_path))
    second.join(60)
    assert second.exitcode == 0
    for rank in (0, 1):
        without, zeros = (torch.load(tmp_path / f"{way}-{rank}.pt", weights_only=True) for way in ("without", "zeros"))
        assert len(without) > 100
        assert all(torch.equal(a, b) for a, b in zip(without, zeros, strict=True))


def test_steps_begin_without_gradients_where_a_mean_over_ranks_is_exact() -> None:
    def begins(ranks: int, device: str, *, microbatch_images: int | None = None) -> bool:
        return begins_without_gradients(plan_batch(24 * ranks, ranks, microbatch_images), World(size=ranks), torch.device(device))

    assert [ranks for ranks in range(1, 9) if begins(ranks, "cpu")] == [1, 2, 4, 8]
    assert [ranks for ranks in range(1, 9) if begins(ranks, "cuda")] == [1]
    assert not begins(1, "cpu", microbatch_images=8), "passes add to each other"
    assert not begins(2, "cpu", microbatch_images=8), "passes add to each other"


class Watch(TorchDispatchMode):
    """Notes every operation that makes the host read from the device, or copies a Python number to it through pageable memory."""

    WAITING = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.WAITING:
            self.messages.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["rectified_flow", "vp_linear"])
def test_a_training_step_never_makes_the_host_wait_for_the_device(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what a CPU does in its own way, the operations are those of CUDA, where each of these would stop the pipeline."""
    of_rng_and_norms = ("model.rng.numpy_is_faster", "model.instance_norm.is_faster", "model.token_norm_cpu.is_faster")
    for own_way in (*of_rng_and_norms, "model.optim.is_known_to_host"):
        monkeypatch.setattr(own_way, lambda *args: False)
    recipe = tiny_recipe(total_steps=3)
    recipe = recipe.model_copy(update={"diffusion": recipe.diffusion.model_copy(update={"path": path})})
    pack = tiny_pack(tmp_path / "pack")
    trainer = Trainer(recipe, pack, Placement(World(), CPU), Outputs(MemoryRecorder(), LocalSink(tmp_path)))
    trainer._advance()
    with Watch() as watch:
        trainer._advance()
    assert watch.messages == []
    with Watch() as watch:
        float(trainer.training_step._guard.is_nonfinite)
        torch.tensor(1.0)
    assert len(watch.messages) == 2, "the watch sees what it is for"
