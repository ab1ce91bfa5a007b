"""The train step: compute the run key, look for its checkpoints, and launch the ranks for the remaining steps.

Promises: a finished run is not repeated, but what was damaged or lost of it is made again, its run in MLflow included; an unfinished one
is continued; all attempts share one MLflow run, which ends with the right status; an MLflow outage does not stop training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import BadInput, TemporaryFailure
from components.features.config import FeaturesConfig
from components.manifests import CheckpointManifest, DatasetManifest
from components.reports.plural import plural
from components.resources import ResourcesConfig
from components.runtime.context import StepContext, read_section
from components.runtime.events import TRAINING
from components.runtime.launch import launch
from components.stores.checkpoints import CheckpointStore
from components.system.locks import lock_or_fail, try_lock
from components.train.checkpointing.finished import Finished, find_finished
from components.train.repair import FinishedRun, repair_finished
from components.train.reporting.reporter import MlflowRunReporter
from components.train.spec import SPEC_FILE, TrainSpec, new_attempt, run_key, store_spec
from components.train.teacher import with_teacher
from model.config import DiffusionConfig, DistillConfig, NetworkConfig, OptimizerConfig, Recipe, SamplingConfig, TrainingConfig

_FEWEST_IMAGES = 2


def run(
    recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig, context: StepContext, *, features: FeaturesConfig | None = None
) -> CheckpointManifest:
    """Train `recipe` on `dataset` up to its last step and return the checkpoint.

    Samples are scored on `features` if `training.score_every_steps` is set. The teacher of a distillation is looked up in the store.

    Raises:
        BadInput: if recipe, data, resources and teacher do not fit each other.
        DataRefused: if training became non-finite or every checkpoint is corrupt.
        TemporaryFailure: if it was stopped or a server or rank failed; the next attempt continues.
    """
    _check(recipe, dataset, resources, features)
    if recipe.distill is not None:
        recipe = _with_teacher(recipe, context)
    key = run_key(recipe.identity(dataset.digest))
    total = recipe.training.total_steps
    run = context.layout.run(key)
    checkpoints = CheckpointStore(context.store, run.checkpoints, warn=context.events.note)
    outcome = find_finished(checkpoints, recipe, dataset.digest)
    attempt = new_attempt(run, context.store)
    spec = TrainSpec(run_key=key, attempt=attempt, dataset=dataset, resources=resources, features=features, **dict(recipe))
    if outcome is not None:
        context.events.note(f"run {key} is already trained to step {outcome.step}, nothing to do")
        _repair(spec, outcome, context)
        return _manifest(key, outcome, recipe, dataset, context)
    folder = context.run_folder(key)
    with lock_or_fail(folder / "launcher.lock", f"training of run {key}"):
        store_spec(spec, context.store, context.layout)
        images, processes = plural(recipe.training.batch_images, "image"), plural(resources.processes, "process", "processes")
        text = f"{plural(total, 'step')} of {images} on {resources.nodes} x {processes}"
        context.events.emit("note", text=f"run {key}: {text}", **{TRAINING: key})
        if (reason := recipe.training.why_never_scored()) is not None:
            context.events.note(reason)
        if recipe.training.compile:
            context.events.note("the network is compiled during the first steps, which takes a minute or more, without progress")
        run_ranks = rank_runner(resources)
        with _report_to_mlflow(context, spec):
            run_ranks(spec, folder / SPEC_FILE, context)
            outcome = find_finished(checkpoints, recipe, dataset.digest, is_new=True)
            if outcome is None:
                raise TemporaryFailure(
                    f"run {key} has no checkpoint of step {total} yet", hint="run it again: it continues from the newest one"
                )
    return _manifest(key, outcome, recipe, dataset, context)


def _with_teacher(recipe: Recipe, context: StepContext) -> Recipe:
    recipe = with_teacher(recipe, context.store, context.layout)
    assert recipe.teacher is not None, "it has been looked up"
    context.events.note(f"the teacher is {recipe.teacher.summary}, weights {recipe.teacher.weights_sha256[:12]}")
    return recipe


def _repair(spec: TrainSpec, finished: Finished, context: StepContext) -> None:
    """Make again what a finished run has lost, unless another launcher does."""
    folder = context.run_folder(spec.run_key)

    def train_to(step: int) -> None:
        """Train from the newest checkpoint before `step` to it; the numbers of a run do not depend on its length."""
        training = spec.training.model_copy(update={"total_steps": step})
        run_ranks = rank_runner(spec.resources)
        attempt = new_attempt(context.layout.run(spec.run_key), context.store)
        again = spec.model_copy(update={"attempt": attempt, "training": training, "features": None})  # scores were recorded
        run_ranks(again, folder / SPEC_FILE, context)

    with try_lock(folder / "launcher.lock") as is_free:
        if is_free:
            repair_finished(FinishedRun(spec, finished, train_to if spec.resources.nodes == 1 else None), context)


def rank_runner(resources: ResourcesConfig) -> Callable[[TrainSpec, Path, StepContext], None]:
    """Return the function that runs the ranks until they end, on this machine or on several nodes.

    Imports the Kubernetes client if it is needed. Call it before the journal's thread imports MLflow: both import requests, and two
    threads that import a package at once can each see a part of it.
    """
    if resources.nodes > 1:
        # The Kubernetes client takes a second to import, and one node needs none.
        from components.train.trainjob.job import train_on_nodes  # noqa: PLC0415

        return lambda spec, path, context: train_on_nodes(spec, context)
    return _train_here


def _train_here(spec: TrainSpec, path: Path, context: StepContext) -> None:
    """Run the ranks on this machine until they end; their checkpoints are in object storage."""
    spec.dump(path)
    resources = spec.resources
    launch(
        "components.train.worker",
        path,
        work_dir=context.settings.work_dir,
        processes=resources.processes,
        threads=resources.threads,
    )


@contextmanager
def _report_to_mlflow(context: StepContext, spec: TrainSpec) -> Iterator[None]:
    """Report start and end of the training to MLflow, without waiting for MLflow."""
    reporter = MlflowRunReporter(context, spec)
    reporter.begin()
    try:
        yield
    except BaseException as error:
        reporter.end(error)
        raise
    reporter.end(None)


def _check(recipe: Recipe, dataset: DatasetManifest, resources: ResourcesConfig, features: FeaturesConfig | None) -> None:
    if dataset.image_px != recipe.network.image_px:
        raise BadInput(
            f"network.image_px is {recipe.network.image_px}, the dataset's images have {dataset.image_px}",
            hint="set data.image_px and network.image_px to the same number",
        )
    if dataset.num_images < _FEWEST_IMAGES:
        raise BadInput(
            f"the dataset has {plural(dataset.num_images, 'image')} to train on, "
            f"at least {_FEWEST_IMAGES} are needed to evaluate what is trained",
            hint="ingest a source with more images, or with a smaller data.held_out",
        )
    if recipe.training.score_every_steps is not None and features is None:
        raise BadInput(
            "training.score_every_steps is set, and the train step got no features to score on",
            hint="compile the pipeline again with this version",
        )
    try:
        recipe.training.check_score_images(dataset.num_images)
    except ValueError as error:
        raise BadInput(f"training.{error}", hint=f"set training.score_images={dataset.num_images} or less") from error
    try:
        recipe.training.batch_plan(resources.num_ranks)
    except ValueError as error:
        raise BadInput(f"training.{error}") from error
    try:
        recipe.training.check_ema(recipe.sampling.ema)
    except ValueError as error:
        raise BadInput(f"sampling.{error}") from error


def _manifest(key: str, finished: Finished, recipe: Recipe, dataset: DatasetManifest, context: StepContext) -> CheckpointManifest:
    return CheckpointManifest(
        run_key=key,
        uri=context.layout.key_of(finished.uri),
        digest=finished.digest,
        step=finished.step,
        dataset_digest=dataset.digest,
        recipe=recipe.training_recipe,
    )


def read_features(text: str) -> FeaturesConfig | None:
    """Validate what samples are scored on, given as canonical JSON; null: no scores are configured."""
    return None if text == "null" else read_section(FeaturesConfig, text, name="features")


def read_recipe(network: str, diffusion: str, optimizer: str, training: str, sampling: str, distill: str = "null") -> Recipe:
    """Validate the sections of a recipe, given as canonical JSON; `distill` null: the network learns from its initial weights."""
    return Recipe(
        network=read_section(NetworkConfig, network, name="network"),
        diffusion=read_section(DiffusionConfig, diffusion, name="diffusion"),
        optimizer=read_section(OptimizerConfig, optimizer, name="optimizer"),
        training=read_section(TrainingConfig, training, name="training"),
        sampling=read_section(SamplingConfig, sampling, name="sampling"),
        distill=None if distill == "null" else read_section(DistillConfig, distill, name="distill"),
    )
