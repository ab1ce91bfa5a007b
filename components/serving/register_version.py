"""How weights that the pipeline has not evaluated become a model version: imported ones, and averages made after training.

Promises: the same weights give the same version, however often; it is stored only after it has drawn an image; it carries no decision
of the gate, so that promoting it needs `--force` and a reason, which is logged. What the pipeline evaluated goes through the register step.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from components.registry.client import Registry
from components.runtime.context import StepContext
from components.serving.package import save_model, try_out
from components.storage import StoreUri, file_sha256
from model import config as model_config
from model.checkpoint_manifest import Checkpoint
from model.config import ModelSpec, SamplingConfig
from model.description import VersionDescription

TAG_TRIAL = "serving.trial"
PASSED = "passed"
REQUIREMENTS = ("torch", "numpy", "pandas", "pillow", "psutil", "pydantic", "jaxtyping", "safetensors", "mlflow")


@dataclass(frozen=True)
class Unevaluated:
    """Weights and what is known of them."""

    checkpoint: Checkpoint
    group: str
    uri: StoreUri
    run_key: str
    model: ModelSpec
    sampling: SamplingConfig
    licence: str
    card: str
    tags: Mapping[str, str]


def add_unevaluated(weights: Unevaluated, model_name: str, run_id: str, context: StepContext) -> tuple[str, bool]:
    """Register `weights` as a version made by the MLflow run `run_id`; return its number, and whether it is new.

    Raises:
        DataRefused: if the model that is built from them does not draw.
    """
    registry, digest, ema = Registry(context.tracking, model_name), weights.checkpoint.digest, weights.sampling.ema
    if (found := registry.version_of(digest, ema)) is not None:
        return str(found.version), False
    registry.ensure("Diffusion Transformer face generator; versions are made by the celebdit pipeline.")
    folder = context.scratch("register", digest[:16]) / "model"
    shutil.rmtree(folder, ignore_errors=True)
    file = weights.checkpoint.directory / f"{weights.group}.safetensors"
    save_model(
        folder,
        weights=file,
        description=VersionDescription(
            **dict(weights.model),
            sampling=weights.sampling,
            checkpoint_digest=digest,
            licence=weights.licence,
            weights_sha256=file_sha256(file),
        ),
        card=weights.card,
        requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
        model_package=Path(model_config.__file__).parent,
    )
    try_out(folder, image_px=weights.model.network.image_px)
    model = context.tracking.checkpoint_model(
        run_id, name=weights.group.replace(".", "_"), digest=digest, ema=ema, uri=str(weights.uri), run_key=weights.run_key
    )
    tags = {
        "run_key": weights.run_key,
        "checkpoint.uri": str(weights.uri),
        "dataset.licence": weights.licence,
        TAG_TRIAL: PASSED,
        **weights.tags,
    }
    version = registry.add_version(
        folder, checkpoint_digest=digest, ema=ema, model_id=str(model.model_id), run_id=run_id, tags=tags, description=weights.card
    )
    shutil.rmtree(folder.parent, ignore_errors=True)
    return str(version.version), True
