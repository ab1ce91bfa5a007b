"""The gradients of one training step, on this process or on two that speak gloo; importable by the processes that are spawned."""

import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_recipe

from model.dataset import open_pack
from model.distributed import World, process_group
from model.interfaces import Outputs
from model.trainer import Placement, Trainer

BATCH = 32
CPU = torch.device("cpu")


def gradients(folder: Path, world: World, microbatch_images: int | None) -> dict[str, torch.Tensor]:
    """Return the gradients of one step of a network whose weights are not its zero initialisation, before clipping changes them."""
    recipe = tiny_recipe(total_steps=1, batch_images=BATCH, microbatch_images=microbatch_images)
    recipe = type(recipe)(**{**vars(recipe), "optimizer": recipe.optimizer.model_copy(update={"clip_norm": 1e9})})
    sink = LocalSink(folder / f"checkpoints-{world.rank}-{world.size}-{microbatch_images}")
    trainer = Trainer(recipe, open_pack(folder / "pack"), Placement(world, CPU), Outputs(MemoryRecorder(), sink))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trainer.run()
    return {name: parameter.grad.clone() for name, parameter in trainer.network.named_parameters() if parameter.grad is not None}


def rank_main(rank: int, folder: str, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    world = World(rank=rank, local_rank=rank, size=2)
    with process_group(world, CPU, timeout_s=60):
        torch.save(gradients(Path(folder), world, None), Path(folder) / f"gradients-{rank}.pt")


def train_both_ways(rank: int, folder: str) -> None:
    """Train as one of two ranks, once as steps begin and once with gradients of zeros, and save the weights and moments of both."""
    torch.set_num_threads(1)
    world = World(rank=rank, local_rank=rank, size=2, local_size=2, rendezvous=Path(folder) / "rendezvous")
    with process_group(world, CPU, timeout_s=60):
        for way, zeros in (("without", False), ("zeros", True)):
            sink = LocalSink(Path(folder) / f"checkpoints-{way}-{rank}")
            with patch("model.training_step.begins_without_gradients", lambda *args: False) if zeros else nullcontext():
                recipe = tiny_recipe(total_steps=4, batch_images=BATCH)
                trainer = Trainer(recipe, open_pack(Path(folder) / "pack"), Placement(world, CPU), Outputs(MemoryRecorder(), sink))
                trainer.run()
            moments = [state[name] for state in trainer.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
            tensors = [tensor.detach() for tensor in (*trainer.network.parameters(), *moments)]
            torch.save(tensors, Path(folder) / f"{way}-{rank}.pt")
