"""The train step: decide what the run is, find what is done of it, and let torchrun do the rest.

Promises: a finished run is found and not repeated; an unfinished one is continued; the MLflow run is the same one across attempts and ends
with the right status; MLflow being away does not stop training.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput, TemporaryFailure
from components.manifests import CheckpointManifest, DatasetManifest
from components.resources import ResourcesConfig
from components.runtime.context import StepContext, read_section
from components.runtime.launch import launch
from components.storage import StoreUri
from components.stores.checkpoints import CheckpointStore
from components.system.locks import claimed
from components.train.reporting.reporter import Description
from components.train.spec import SPEC_FILE, TrainSpec, run_key, store_spec
from model.config import DiffusionConfig, NetworkConfig, OptimizerConfig, Recipe, SamplingConfig, TrainingConfig, TrainingRecipe


@dataclass(frozen=True)
class Finished:
    """The checkpoint of a run's last step."""

    uri: StoreUri
    digest: str
    step: int


def run(recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig, context: StepContext) -> CheckpointManifest:
    """Train `recipe` on `dataset` up to its last step and return the checkpoint.

    Raises:
        BadInput: if recipe, data and resources do not fit each other.
        DataRefused: if training became non-finite or every checkpoint is damaged.
        TemporaryFailure: if it was stopped or something outside failed; the next attempt continues.
    """
    _check(recipe, dataset, resources)
    key = run_key(recipe.identity(dataset.digest))
    total = recipe.training.total_steps
    checkpoints = CheckpointStore(context.store, context.layout.run(key).checkpoints, warn=context.events.note)
    outcome = _finished(checkpoints, total)
    if outcome is not None:
        context.events.note(f"run {key} is trained to step {outcome.step} already, nothing to do")
        return _manifest(key, outcome, recipe, dataset)
    spec = TrainSpec(
        run_key=key,
        attempt=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}",
        dataset=dataset,
        resources=resources,
        **dict(recipe),
    )
    folder = context.scratch("runs", key)
    with claimed(folder / "launcher.lock", f"training of run {key}"):
        store_spec(spec, context.store, context.layout)
        context.events.note(
            f"run {key}: {total} steps of {recipe.training.batch_images} images on {resources.nodes} x {resources.processes} process(es)"
        )
        with _described(context, spec):
            _train(spec, folder / SPEC_FILE, context)
            outcome = _finished(checkpoints, total)
            if outcome is None:
                raise TemporaryFailure(
                    f"run {key} has no checkpoint of step {total} yet", hint="run it again: it continues from the newest one"
                )
    return _manifest(key, outcome, recipe, dataset)


def _train(spec: TrainSpec, path: Path, context: StepContext) -> None:
    """Have the ranks work until they end, here or on several nodes; what they made is found in object storage."""
    if spec.resources.nodes > 1:
        # The Kubernetes client takes a second to import, and one node needs none.
        from components.train.trainjob.job import train_on_nodes  # noqa: PLC0415

        train_on_nodes(spec, context)
        return
    spec.dump(path)
    asked = spec.resources
    launch("components.train.worker", path, work_dir=context.settings.work_dir, processes=asked.processes, threads=asked.threads)


@contextmanager
def _described(context: StepContext, spec: TrainSpec) -> Iterator[None]:
    """Have the training described in MLflow, and its end told, without waiting for MLflow to begin."""
    description = Description(context, spec)
    description.begin()
    try:
        yield
    except BaseException as error:
        description.end(error)
        raise
    description.end(None)


def _check(recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig) -> None:
    if dataset.image_px != recipe.network.image_px:
        raise BadInput(
            f"network.image_px is {recipe.network.image_px}, the data set's images have {dataset.image_px}",
            hint="set data.image_px and network.image_px to the same number",
        )
    try:
        recipe.training.batch_plan(resources.num_ranks)
    except ValueError as error:
        raise BadInput(f"training.{error}") from error
    try:
        recipe.training.check_ema(recipe.sampling.ema)
    except ValueError as error:
        raise BadInput(f"sampling.{error}") from error


def _finished(checkpoints: CheckpointStore, total_steps: int) -> Finished | None:
    """Return the checkpoint of the last step if it is there."""
    committed = checkpoints.list_committed()
    for entry in committed:
        if entry.step == total_steps:
            return Finished(uri=entry.uri, digest=checkpoints.digest(entry.uri), step=entry.step)
    if committed and all(entry.step > total_steps for entry in committed):
        raise BadInput(
            f"this run was trained beyond training.total_steps {total_steps} before, to step {committed[0].step}",
            hint=f"set training.total_steps={committed[0].step} or more",
        )
    return None


def _manifest(key: str, finished: Finished, recipe: Recipe, dataset: DatasetManifest) -> CheckpointManifest:
    return CheckpointManifest(
        run_key=key,
        uri=str(finished.uri),
        digest=finished.digest,
        step=finished.step,
        dataset_digest=dataset.digest,
        recipe=TrainingRecipe(network=recipe.network, diffusion=recipe.diffusion, optimizer=recipe.optimizer, training=recipe.training),
    )


def read_recipe(network: str, diffusion: str, optimizer: str, training: str, sampling: str) -> Recipe:
    """Validate the sections of a recipe that arrived as canonical JSON."""
    return Recipe(
        network=read_section(NetworkConfig, network, name="network"),
        diffusion=read_section(DiffusionConfig, diffusion, name="diffusion"),
        optimizer=read_section(OptimizerConfig, optimizer, name="optimizer"),
        training=read_section(TrainingConfig, training, name="training"),
        sampling=read_section(SamplingConfig, sampling, name="sampling"),
    )
