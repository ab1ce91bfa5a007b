"""Stretches of a training from one checkpoint to a step, in one or several gloo ranks that are forked once and train many of them."""

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from celebdit_testing.memory import LocalSink, MemoryRecorder
from celebdit_testing.recipes import tiny_pack, tiny_recipe

if TYPE_CHECKING:
    from model.dataset import Pack
    from model.distributed import World

Metrics = dict[tuple[str, int], float]

_FORK = multiprocessing.get_context("forkserver")
_FORK.set_forkserver_preload(["celebdit_testing.stretches", "model.trainer", "torch._dynamo"])


@dataclass(frozen=True)
class Stretch:
    """What to train: a tiny network with a metric point every `log_every_steps`, and a checkpoint of every step in `folder`."""

    folder: Path
    log_every_steps: int
    total_steps: int
    start: Path | None = None
    """The checkpoint to continue from; None: from the beginning."""
    stop_step: int | None = None
    """A step after which to stop; ranks agree on it a step later."""


def train_stretches(stretches: Sequence[Stretch], folder: Path, *, size: int) -> list[Metrics]:
    """Train one stretch after the other with `size` ranks and return what the first rank recorded of each."""
    folder.mkdir(parents=True)
    tiny_pack(folder / "pack")
    processes = [_FORK.Process(target=_be_rank, args=(rank, size, list(stretches), folder), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
    return [
        {(key, step): value for key, step, value in json.loads((folder / f"{index}.json").read_text())} for index in range(len(stretches))
    ]


def _be_rank(rank: int, size: int, stretches: list[Stretch], folder: Path) -> None:
    import torch

    from model.dataset import open_pack
    from model.distributed import World, process_group

    torch.set_num_threads(1)
    world = World(rank=rank, local_rank=rank, size=size, local_size=size, rendezvous=folder / "rendezvous")
    pack = open_pack(folder / "pack")
    with process_group(world, torch.device("cpu"), timeout_s=60.0):
        for index, stretch in enumerate(stretches):
            recorder = _train(stretch, world, pack)
            if rank == 0:
                values = [[key, step, value] for (key, step), value in recorder.values.items()]
                (folder / f"{index}.json").write_text(json.dumps(values))


def _train(stretch: Stretch, world: "World", pack: "Pack") -> MemoryRecorder:
    import torch

    from model.checkpoint import read
    from model.interfaces import Outputs
    from model.trainer import Placement, Trainer

    recipe = tiny_recipe(
        total_steps=stretch.total_steps,
        batch_images=12,
        log_every_steps=stretch.log_every_steps,
        checkpoint_keep_every_steps=1,
    )
    recorder = MemoryRecorder()
    trainer = Trainer(recipe, pack, Placement(world, torch.device("cpu"), timeout_s=60.0), Outputs(recorder, LocalSink(stretch.folder)))
    if stretch.start is not None:
        trainer.restore(read(stretch.start))
    stop_step = stretch.stop_step
    trainer.run(stop_requested=lambda: stop_step is not None and trainer.step >= stop_step)
    return recorder
