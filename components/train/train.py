"""The train step: decide what the run is, find what is done of it, and let torchrun do the rest.

Promises: a finished run is found and not repeated; an unfinished one is continued; the MLflow run is the same one across attempts and ends
with the right status; MLflow being away does not stop training.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from components.checkpoints import CheckpointStore
from components.context import StepContext, read_section
from components.errors import BadInput, CelebditError, TemporaryFailure, TrackingUnavailable
from components.launch import launch
from components.manifests import CheckpointManifest, DatasetManifest
from components.resources import ResourcesConfig
from components.train.spec import TrainOutcome, TrainSpec, identity, run_key
from components.train.worker import OUTCOME_FILE
from model.batching import plan_batch
from model.config import DiffusionConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig
from model.trainer import Recipe


def run(recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig, context: StepContext) -> CheckpointManifest:
    """Train `recipe` on `dataset` up to its last step and return the checkpoint.

    Raises:
        BadInput: if recipe, data and resources do not fit each other.
        DataRefused: if training became non-finite or every checkpoint is damaged.
        TemporaryFailure: if it was stopped or something outside failed; the next attempt continues.
    """
    _check(recipe, dataset, resources)
    facts = identity(dataset.digest, recipe.network, recipe.diffusion, recipe.optimizer, recipe.training)
    key = run_key(facts)
    total = recipe.training.total_steps
    checkpoints = CheckpointStore(context.store, context.root / "runs" / key, warn=context.events.note)
    outcome = _finished(checkpoints, total)
    if outcome is not None:
        context.events.note(f"run {key} is trained to step {outcome.step} already, nothing to do")
        return _manifest(key, outcome, recipe, dataset)
    spec = TrainSpec(
        run_key=key,
        attempt=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}",
        dataset=dataset,
        network=recipe.network,
        diffusion=recipe.diffusion,
        optimizer=recipe.optimizer,
        training=recipe.training,
        sampling=recipe.sampling,
        resources=resources,
    )
    folder = context.scratch("runs", key)
    spec_path = folder / "spec.json"
    spec.dump(spec_path)
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    context.events.note(f"run {key}: {total} steps of {recipe.training.batch_images} images on {resources.processes} process(es)")
    with _tracked(context, spec):
        launch("components.train.worker", spec_path, processes=resources.processes, threads=resources.threads)
    return _manifest(key, TrainOutcome.load(folder / OUTCOME_FILE), recipe, dataset)


def _check(recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig) -> None:
    if dataset.image_px != recipe.network.image_px:
        raise BadInput(
            f"network.image_px is {recipe.network.image_px}, the data set's images have {dataset.image_px}",
            hint="set data.image_px and network.image_px to the same number",
        )
    try:
        plan_batch(recipe.training.batch_images, resources.processes * resources.nodes, recipe.training.microbatch_images)
    except ValueError as error:
        raise BadInput(f"training.{error}") from error
    tracked = {f"{width:g}" for width in recipe.training.ema_sigma_rel} | ({"classic"} if recipe.training.ema_decay else set()) | {"none"}
    if recipe.sampling.ema not in tracked:
        raise BadInput(
            f"sampling.ema {recipe.sampling.ema!r} is not tracked",
            hint=f"use one of {', '.join(sorted(tracked))}, or add it to training.ema_sigma_rel",
        )


def _finished(checkpoints: CheckpointStore, total_steps: int) -> TrainOutcome | None:
    """Return the checkpoint of the last step if it is there."""
    committed = checkpoints.committed()
    for entry in committed:
        if entry.step == total_steps:
            return TrainOutcome(uri=str(entry.uri), digest=checkpoints.digest(entry.uri), step=entry.step, finished=True)
    if committed and all(entry.step > total_steps for entry in committed):
        raise BadInput(
            f"this run was trained beyond training.total_steps {total_steps} before, to step {committed[0].step}",
            hint=f"set training.total_steps={committed[0].step} or more",
        )
    return None


def _manifest(key: str, outcome: TrainOutcome, recipe: Recipe, dataset: DatasetManifest) -> CheckpointManifest:
    if not outcome.finished:
        raise TemporaryFailure(f"run {key} stopped at step {outcome.step}", hint="run it again: it continues from there")
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("network", "diffusion", "optimizer", "training")}
    return CheckpointManifest(
        run_key=key,
        uri=outcome.uri,
        digest=outcome.digest,
        step=outcome.step,
        dataset_digest=dataset.digest,
        recipe=sections,
    )


@contextmanager
def _tracked(context: StepContext, spec: TrainSpec) -> Iterator[None]:
    """Open the run in MLflow and describe it; if MLflow is away, say so and go on."""
    run_id: str | None = None
    try:
        run_id = _describe(context, spec)
    except TrackingUnavailable as away:
        context.events.note(f"{away.message}; training goes on and will tell it later")
    try:
        yield
    except BaseException as error:
        _tell_end(context, run_id, error)
        raise
    _tell_end(context, run_id, None)


def _tell_end(context: StepContext, run_id: str | None, error: BaseException | None) -> None:
    """Set the status of the run in MLflow, if it was reached before and still is."""
    if run_id is None:
        return
    try:
        if error is None:
            context.tracking.set_status(run_id, "FINISHED")
        else:
            context.tracking.close(run_id, error)
    except CelebditError as away:
        context.events.note(f"{away.message}; the status of the run in MLflow may be out of date")


def _describe(context: StepContext, spec: TrainSpec) -> str:
    tracking = context.tracking
    run_id = str(tracking.step_run("train", run_key=spec.run_key, name=f"train-{spec.run_key}").info.run_id)
    tracking.set_status(run_id, "RUNNING")
    tracking.tag(run_id, {"attempt": spec.attempt, "dataset.licence": spec.dataset.licence})
    network, training = spec.network, spec.training
    tracking.params(
        run_id,
        {
            "network.latent_channels": network.latent_channels,
            "network.width": network.width,
            "network.depth": network.depth,
            "network.block": network.block,
            "network.image_px": network.image_px,
            "diffusion.path": spec.diffusion.path,
            "diffusion.prediction": spec.diffusion.prediction,
            "diffusion.weighting": spec.diffusion.weighting,
            "optimizer.lr_peak": spec.optimizer.lr_peak,
            "optimizer.schedule": spec.optimizer.schedule,
            "training.batch_images": training.batch_images,
            "training.precision": training.precision,
            "training.seed": training.seed,
            "data.name": spec.dataset.name,
            "data.num_images": spec.dataset.num_images,
        },
    )
    tracking.text(run_id, spec.model_dump_json(indent=2), "config/train.json")
    tracking.dataset(
        run_id,
        name=spec.dataset.name,
        digest=spec.dataset.digest,
        uri=spec.dataset.uri,
        source=spec.dataset.source,
        context="training",
        profile={"num_images": spec.dataset.num_images, "image_px": spec.dataset.image_px},
    )
    return run_id


def read_recipe(network: str, diffusion: str, optimizer: str, training: str, sampling: str) -> Recipe:
    """Validate the sections of a recipe that arrived as canonical JSON."""
    return Recipe(
        network=read_section(NetworkConfig, network, name="network"),
        diffusion=read_section(DiffusionConfig, diffusion, name="diffusion"),
        optimizer=read_section(OptimizerConfig, optimizer, name="optimizer"),
        training=read_section(TrainingConfig, training, name="training"),
        sampling=read_section(SamplingConfig, sampling, name="sampling"),
    )
