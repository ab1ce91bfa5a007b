"""The smallest recipes and data that still exercise everything."""

from pathlib import Path
from typing import Any

import numpy as np
from celebdit_testing.packs import write_pack

from components.ingest.sources.synthetic import draw_face
from components.manifests import DatasetManifest, EvaluationProtocol
from model.config import (
    DiffusionConfig,
    DistillConfig,
    NetworkConfig,
    OptimizerConfig,
    Recipe,
    SamplingConfig,
    Teacher,
    TrainingConfig,
    TrainingRecipe,
)
from model.dataset import Pack, open_pack

DIGEST = "d" * 64


def tiny_network(**changes: Any) -> NetworkConfig:
    values: dict[str, Any] = {
        "image_px": 16,
        "channels": (8, 16),
        "res_blocks": (1, 1),
        "latent_channels": 8,
        "width": 32,
        "depth": 1,
        "heads": 2,
        "patch_px": 2,
    }
    return NetworkConfig(**{**values, **changes})


def tiny_recipe(*, network: dict[str, Any] | None = None, **training: Any) -> Recipe:
    values: dict[str, Any] = {
        "total_steps": 6,
        "batch_images": 8,
        "ema_sigma_rel": (0.1,),
        "log_every_steps": 2,
        "sample_every_steps": 100,
        "checkpoint_every_s": 1000.0,
    }
    return Recipe(
        network=tiny_network(**(network or {})),
        diffusion=DiffusionConfig(),
        optimizer=OptimizerConfig(lr_peak=1e-3, warmup_steps=2),
        training=TrainingConfig(**{**values, **training}),
        sampling=SamplingConfig(sampler="euler", num_steps=2, ema="0.1"),
    )


def tiny_student(*, steps: int = 3, **training: Any) -> Recipe:
    """A recipe that distils a teacher, as if it had been looked up."""
    return tiny_recipe(**training).model_copy(
        update={
            "distill": DistillConfig(teacher="a" * 16, steps=steps),
            "teacher": Teacher(run_key="a" * 16, step=6, ema="0.1", weights_sha256="b" * 64),
            "sampling": SamplingConfig(sampler="ddpm", num_steps=steps, ema="0.1"),
        }
    )


def trained_with(recipe: Recipe) -> TrainingRecipe:
    """What a checkpoint's manifest holds of `recipe`."""
    return TrainingRecipe.model_validate({name: value for name, value in recipe if name != "sampling"})


def faces(count: int, image_px: int = 16) -> np.ndarray:
    """Drawn faces as uint8 (count, h, w, 3)."""
    return np.stack([np.asarray(draw_face(0, index, image_px)) for index in range(count)])


def tiny_pack(folder: Path, count: int = 20, image_px: int = 16) -> Pack:
    write_pack(folder, faces(count, image_px), [f"key{index:03d}" for index in range(count)], dataset_digest=DIGEST)
    return open_pack(folder)


def evaluation_protocol(**changes: Any) -> EvaluationProtocol:
    values: dict[str, Any] = {
        "name": "custom",
        "num_images": 16,
        "num_reference": 20,
        "reference_split": "all",
        "reference_flip": False,
        "dataset_digest": DIGEST,
        "image_px": 16,
        "codec": "png",
        "resize": "none",
        "extractor": "celebdit-random-conv-1",
        "extractor_sha256": None,
        "metrics": ("frechet",),
        "bootstrap_replicates": 20,
        "sampling": {"sampler": "euler", "num_steps": 2},
        "ema": "0.1",
        "checkpoint_digest": "c" * 64,
        "checkpoint_step": 10,
    }
    return EvaluationProtocol(**{**values, **changes})


def dataset_manifest(**changes: Any) -> DatasetManifest:
    values: dict[str, Any] = {
        "name": "faces",
        "uri": f"datasets/faces/{DIGEST}",
        "digest": DIGEST,
        "image_px": 16,
        "num_images": 20,
        "rejected": {},
        "licence": "CC0-1.0",
        "licence_accepted_by": "not required",
        "source": "synthetic://",
        "shards": [],
        "table_sha256": "e" * 64,
        "tools": {},
    }
    return DatasetManifest(**{**values, **changes})
