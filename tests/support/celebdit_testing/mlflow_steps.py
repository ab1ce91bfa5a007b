"""What the train, evaluate and register steps ask of MLflow, without a model that draws."""

from pathlib import Path

import numpy as np
from celebdit_testing.recipes import DIGEST, tiny_recipe, trained_with
from celebdit_testing.registered import SAMPLING, description_of, report_of
from safetensors.numpy import save_file

from components.manifests import CheckpointManifest
from components.registry.client import CHALLENGER, Registry
from components.registry.tags import VersionTags
from components.registry.version_files import DESCRIPTION_FILE, WEIGHTS_FILE
from components.runtime.context import StepContext
from components.storage import file_sha256
from components.tracking.logged_models import LoggedModels
from components.tracking.metric_points import Point


def register_without_weights(context: StepContext, folder: Path, name: str) -> str:
    """Log a training, evaluate it and register it as `name`; return the version's number."""
    weights = folder / "model" / "artifacts" / WEIGHTS_FILE
    weights.parent.mkdir(parents=True)
    save_file({"a": np.zeros(3, dtype=np.float32)}, weights)
    recipe = trained_with(tiny_recipe())
    checkpoint = CheckpointManifest(run_key="a" * 16, uri="s3://bucket/x", digest="c" * 64, step=7, dataset_digest=DIGEST, recipe=recipe)
    description_of(checkpoint, file_sha256(weights)).write(weights.parent / DESCRIPTION_FILE)
    tracking, registry = context.tracking, Registry(context.tracking, name)
    with tracking.mark_running(tracking.step_run("train", run_key=checkpoint.run_key)) as run_id:
        tracking.log_params(run_id, {"training.total_steps": 7})
        tracking.log_metrics(run_id, [Point("train/loss", step, 0.5, step + 1) for step in range(7)])
        tracking.log_image(run_id, np.zeros((4, 4, 3), np.uint8), key="samples/grid", step=7)
        model_id = LoggedModels(tracking).log_evaluation(run_id, report_of(checkpoint))
    registry.ensure(name)
    version = registry.add_version(
        folder / "model",
        tags=VersionTags(checkpoint_digest=checkpoint.digest, ema=SAMPLING.ema, gate="pass"),
        model_id=model_id,
        run_id=run_id,
        description="# faces",
    )
    registry.set_alias(CHALLENGER, str(version.version))
    registry.tag_version(str(version.version), VersionTags(trial="passed"))
    assert registry.files_of(str(version.version), folder / "files").weights.read_bytes() == weights.read_bytes()
    return str(version.version)
