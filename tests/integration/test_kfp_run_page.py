"""What a run leaves for KFP's run page: the samples of its training, and its outputs."""

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.steps import notes, step_context
from mlflow import MlflowClient
from PIL import Image

from components.finalize import finalize
from components.manifests import CheckpointManifest
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.tracking.tags import TAG_MODEL, TAG_RUN_KEY, TAG_SCORE, TAG_STEP, TAG_VERSION
from components.train.kfp_samples import samples_page
from pipeline.records import open_records

CHECKPOINT = CheckpointManifest.model_construct(step=46000, run_key="0123456789abcdef", digest="c" * 64, uri="runs/1/checkpoints/1")
COLOURS = {5: (255, 0, 0), 90: (0, 255, 0), 12: (0, 0, 255)}


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 1500), colour).save(buffer, "PNG")
    return buffer.getvalue()


def log_training(context: StepContext, images: dict[str, bytes]) -> None:
    """A run of the training as MLflow's server keeps it, with images."""
    client: MlflowClient = context.tracking.client
    tags = {TAG_STEP: "train", TAG_RUN_KEY: CHECKPOINT.run_key}
    run = client.create_run(context.tracking.experiment_id, tags=tags, run_name="train")
    folder = f"artifacts/{run.info.experiment_id}/{run.info.run_id}/artifacts/images"
    for name, content in images.items():
        context.store.put_bytes(StoreUri("mlflow", f"{folder}/{name}"), content)


def test_the_last_samples_of_the_training_are_a_small_page(tmp_path: Path, no_endpoints: None) -> None:
    images = {f"samples~ema_grid%step%{step}%timestamp%1%0a.png": png(colour) for step, colour in COLOURS.items()}
    with open_records(tmp_path / "home", artifacts=True) as context:
        log_training(context, {**images, "samples~seed_000%step%100%timestamp%1%0a.png": png((9, 9, 9))})
        page = samples_page(CHECKPOINT, context)
    assert "Samples at step 90," in page
    (encoded,) = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.size == (1024, 512)
    assert np.abs(np.asarray(image).astype(int).mean((0, 1)) - COLOURS[90]).max() < 4
    assert len(page) < 400_000


@pytest.mark.parametrize("images", [{}, {"samples~ema_grid%step%5%timestamp%1%0a.png": b"damaged"}])
def test_a_training_without_readable_samples_has_a_page_that_says_so(images: dict[str, bytes], tmp_path: Path, no_endpoints: None) -> None:
    with open_records(tmp_path / "home", artifacts=True) as context:
        log_training(context, images)
        page = samples_page(CHECKPOINT, context)
    assert "MLflow has no samples of this training" in page
    assert "<img" not in page


def test_an_outage_of_mlflow_costs_kfp_the_samples_and_nothing_else(tmp_path: Path) -> None:
    context = step_context("train", tmp_path, "s3://bucket/x", endpoint="http://127.0.0.1:9")
    assert "did not answer" in samples_page(CHECKPOINT, context)
    assert any("KFP shows no samples" in note for note in notes(context))


def test_a_run_gives_its_score_and_version_or_says_that_it_has_none(tmp_path: Path, no_endpoints: None) -> None:
    with open_records(tmp_path / "home") as records:
        for run_id, tags, expected in (
            ("registered", {TAG_SCORE: "eval/fd 0.300 ± 0.020", TAG_MODEL: "celebdit", TAG_VERSION: "7"}, ("eval/fd 0.300 ± 0.020", "7")),
            ("evaluated", {TAG_SCORE: "eval/fd 0.300 ± 0.020"}, ("eval/fd 0.300 ± 0.020", "none")),
            ("failed", {}, ("none", "none")),
        ):
            context = replace(records, settings=replace(records.settings, run_id=run_id))
            context.tracking.set_tags(context.tracking.pipeline_run().info.run_id, tags)
            assert tuple(finalize.run("FINISHED", "", context)) == expected
