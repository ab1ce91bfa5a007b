"""The evaluate step on the embedded servers, as its component calls it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.steps import step_context
from celebdit_testing.workers_here import workers_here

from components.evaluate.config import EvaluationConfig
from components.evaluate.evaluate import run as evaluate
from components.ingest.config import DataConfig
from components.ingest.ingest import run as ingest
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from model.config import SamplingConfig
from pipeline.services import Endpoints, Services

SAMPLING = SamplingConfig(sampler="euler", num_steps=2, ema="0.1")
NUM_IMAGES = 24
HEADLINE = "eval/fd_randconv_24"


def config(**changes: Any) -> EvaluationConfig:
    values = {"num_images": NUM_IMAGES, "extractor": "random-conv", "shard_images": 4, "batch_images": 4, "bootstrap_replicates": 3}
    return EvaluationConfig(**{**values, **changes})


def resources(processes: int = 1) -> ResourcesConfig:
    return ResourcesConfig(device="cpu", processes=processes)


@contextmanager
def environment_of(embedded: Services) -> Iterator[Endpoints]:
    """The embedded servers, with this process's environment pointing at them inside the block."""
    endpoints = embedded.wait()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in endpoints.environment.items():
            patch.setenv(name, value)
        for name in ("CELEBDIT_RUN_ID", "CELEBDIT_WORK_DIR"):
            patch.setenv(name, "changed by run_in_processes()")  # so that it is undone afterwards
        yield endpoints


def place(environment: Endpoints, folder: Path, *, part: str = "evaluations", run_id: str = "evaluation-1") -> StepContext:
    """A step's context; another folder is another machine, another part another store."""
    store = f"{environment.environment['CELEBDIT_STORE']}/{part}"
    return step_context("evaluate", folder, store, endpoint=environment.s3_url, mlflow_uri=environment.mlflow_url, run_id=run_id)


def run(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    resources: ResourcesConfig,
    model: str,
    context: StepContext,
    *,
    then: Callable[[], object] = lambda: None,
) -> EvaluationReport:
    """The step as its component calls it, its one worker in this process: starting torch each time would cost minutes.

    The tests of several processes and of kills, and the pipeline's own tests, start real ones. `then` happens right after the worker.
    """

    with workers_here(context, then=then):
        return evaluate(checkpoint, dataset, evaluation, sampling, resources, model, context)


def run_in_processes(processes: int, checkpoint: CheckpointManifest, dataset: DatasetManifest, context: StepContext) -> EvaluationReport:
    """The step with workers of its own, which find their place in the environment."""
    settings = context.settings
    os.environ.update(CELEBDIT_STORE=settings.store_uri, CELEBDIT_RUN_ID=settings.run_id, CELEBDIT_WORK_DIR=str(settings.work_dir))
    return evaluate(checkpoint, dataset, config(batch_images=None), SAMPLING, resources(processes), "no-model", context)


def drawn_faces(environment: Endpoints, folder: Path, *, part: str = "evaluations") -> DatasetManifest:
    """Forty drawn faces, eight of them held out."""
    source = "synthetic://?count=40&seed=0&size=16"
    return ingest(DataConfig(name="eval-faces", source=source, image_px=16, held_out=0.2), place(environment, folder, part=part), workers=1)
