"""What is done to a rank before it begins, to make it fail in a chosen way."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import psutil
import torch


def infinite_loss_on_rank_1_at_step_17(rank: int) -> None:
    """Make one image's loss infinite in the 17th step of rank 1, without touching its gradient."""
    from model.diffusion import Diffusion

    healthy, calls = Diffusion.losses, 0

    def losses(self: Diffusion, *arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        values = healthy(self, *arguments)
        if rank == 1 and calls == 17:
            values = values + torch.where(torch.arange(len(values)) == 3, float("inf"), 0.0)
        return values

    Diffusion.losses = losses  # type: ignore[method-assign]


def disk_full_after_two_checkpoints(rank: int) -> None:
    """Let no file grow beyond 300 kB once two checkpoints are written, as on a disk with no room for more."""
    from components.train.checkpointing import uploads

    publish, calls = uploads.publish, 0

    def limited(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        return publish(*arguments)

    uploads.publish = limited


def little_memory(rank: int) -> None:
    """Let the process have 1 GB more address space than it has now."""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))


def saving_takes_long_after_a_stop(rank: int) -> None:
    """Let the first rank take a minute over the save that a stop asks for; a file in the work directory shows that it has begun."""
    from model.trainer import Trainer

    save = Trainer._save

    def slow(self: Trainer, *, wait: bool) -> None:
        if wait and rank == 0 and self.step < self.recipe.training.total_steps:
            Path(os.environ["CELEBDIT_WORK_DIR"], "saving").touch()
            time.sleep(60)
        save(self, wait=wait)

    Trainer._save = slow  # type: ignore[method-assign]


def slow_features_of_rank_1(rank: int) -> None:
    """Let rank 1 take a second longer than the others for the features of each pass of a score."""
    from components.train.scoring import FeatureScorer

    features = FeatureScorer.features

    def slow(self: FeatureScorer, images: torch.Tensor) -> torch.Tensor:
        time.sleep(1.0 if rank == 1 else 0.0)
        return features(self, images)

    FeatureScorer.features = slow  # type: ignore[method-assign]
