"""A committed checkpoint of a tiny network in object storage, without a training."""

from pathlib import Path
from typing import Any

import torch
from celebdit_testing.recipes import tiny_recipe, trained_with

from components.manifests import CheckpointManifest
from components.runtime.context import StepContext
from components.stores.checkpoints import CheckpointStore
from model.checkpoint import CheckpointState, publish
from model.config import Recipe
from model.denoiser import build_denoiser


def commit_checkpoint(
    context: StepContext, folder: Path, *, seed: int, dataset_digest: str = "d" * 64, recipe: Recipe | None = None, **network: Any
) -> CheckpointManifest:
    """Store random weights as a complete checkpoint, of `recipe` or of a tiny network, and return its manifest."""
    recipe = tiny_recipe(network=network) if recipe is None else recipe
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in build_denoiser(recipe.network).state_dict().items()
    }
    state = CheckpointState(
        step=7,
        tensors={"weights": weights, "ema-0.1": {name: 0.9 * value for name, value in weights.items()}},
        facts={"identity": recipe.identity(dataset_digest)},
    )
    key = f"{seed:016x}"
    local = publish(state, folder / key)
    uri = CheckpointStore(context.store, context.layout.run(key).checkpoints).upload(local, "attempt-1")
    return CheckpointManifest(
        run_key=key, uri=context.layout.key_of(uri), digest=local.digest, step=7, dataset_digest=dataset_digest, recipe=trained_with(recipe)
    )
