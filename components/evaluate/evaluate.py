"""The evaluate step: sample images, measure their distance to the dataset, and report the metrics with their protocol.

Promises: every metric comes with its protocol; the same weights under the same protocol are measured once; a killed evaluation resumes, on
this machine or another; what was damaged or lost of a finished one is made again; the champion's metrics in the report are of the same
protocol, but for the sampler beside a student of few steps. Does not judge the metrics; see the gate step.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from components.errors import BadInput
from components.evaluate.champion import NotMeasurable, open_champion
from components.evaluate.config import EvaluationConfig
from components.evaluate.finished import finished_report
from components.evaluate.metrics.table import active_metrics
from components.evaluate.protocol import CUSTOM, split_sizes
from components.evaluate.shown import show_evaluation
from components.evaluate.spec import EvaluateSpec
from components.features.extractors import fetch_weights
from components.manifests import ChampionScores, CheckpointManifest, DatasetManifest, EvaluationReport
from components.registry.client import CHAMPION, ModelVersion, Registry
from components.registry.tags import VersionTags
from components.reports.plural import plural
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.stores.checkpoints import CheckpointStore
from components.system.garbage import search_as_usual
from components.system.own_folder import own_folder
from components.system.work_folders import WorkFolder
from components.tracking.logged_models import LoggedModels
from components.tracking.tags import TAG_CHECKPOINT
from model.config import SamplingConfig, TrainingRecipe
from model.ema import EmaName

_MEASURED_TOGETHER = 8
"""Evaluations whose weights lie on this disk at once."""


def run(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    resources: ResourcesConfig,
    model_name: str,
    context: StepContext,
    *,
    verify_key: str | None = None,
) -> EvaluationReport:
    """Measure `checkpoint` against `dataset`, and the champion of `model_name` beside it, and return the report.

    A champion that the public key in the file `verify_key` does not verify is not measured; without a file signatures are not looked at.

    Raises:
        DataRefused: if the checkpoint or the dataset is corrupt or incomplete. BadInput: if the extractor's weights are missing.
    """
    spec = EvaluateSpec(
        checkpoint=checkpoint,
        model=checkpoint.recipe.model_spec,
        dataset=dataset,
        evaluation=evaluation,
        sampling=sampling,
        resources=resources,
    )
    check(spec, context)
    report = measured_report(spec, context)
    _publish(report, spec, checkpoint.recipe, context)
    if not evaluation.champion:
        return report
    is_student = checkpoint.recipe.distill is not None
    champion = _champion_scores(spec, report, Registry(context.tracking, model_name), context, verify_key, is_student=is_student)
    return report.model_copy(update={"champion": champion})


def measured_report(spec: EvaluateSpec, context: StepContext) -> EvaluationReport:
    """Return the report of the weights of `spec`, which are measured unless they were under this protocol; logs nothing to MLflow."""
    report = finished_report(spec, context)
    if report is None:
        return _measure(spec, partial(_fetch_checkpoint, spec, context=context), context)
    context.events.note(f"checkpoint {spec.checkpoint.digest[:12]} was measured under this protocol already, nothing to do")
    return report


def measured_reports(specs: Sequence[EvaluateSpec], context: StepContext) -> list[EvaluationReport]:
    """Return the reports of several evaluations, as `measured_report` does, with one start of the workers for some at a time."""
    reports = []
    for first in range(0, len(specs), _MEASURED_TOGETHER):
        group = specs[first : first + _MEASURED_TOGETHER]
        unfinished = [spec for spec in group if finished_report(spec, context) is None]
        if len(unfinished) > 1:
            from components.evaluate.measure import process  # noqa: PLC0415 - imports PyTorch

            process([(spec, partial(_fetch_checkpoint, spec, context=context)) for spec in unfinished], context)
        reports += [measured_report(spec, context) for spec in group]
    return reports


def check(spec: EvaluateSpec, context: StepContext) -> None:
    """Refuse before sampling what would fail after it.

    Raises:
        BadInput: naming the setting.
    """
    evaluation, weights = spec.evaluation, context.scratch(WorkFolder.WEIGHTS)
    for setting in ("weights", "vgg_weights"):
        location, sha256 = getattr(evaluation, setting), getattr(evaluation, f"{setting}_sha256")
        if sha256 is not None:
            stored = context.layout.metric_weights(sha256)
            fetch_weights(location, sha256, context.store, weights, setting=setting, stored=stored)
    split = spec.comparison.reference_split
    if spec.num_reference < 2:
        sizes = ", ".join(f"{name} {size}" for name, size in split_sizes(spec.dataset).items())
        raise BadInput(
            f"evaluation.reference_split {split!r} has {plural(spec.num_reference, 'image')}, at least 2 are needed",
            hint=f"the dataset has {sizes}; set evaluation.reference_split, or data.held_out and ingest again",
        )
    for metric in active_metrics(evaluation):
        if min(spec.num_images, spec.num_reference) < metric.min_images:
            raise BadInput(f"evaluation.metrics '{metric.name}' needs at least {metric.min_images} images on both sides")
    if spec.protocol.name == CUSTOM and spec.comparison.num_images >= 1000:
        context.events.note("the protocol is 'custom': its metrics cannot be compared with published ones")


def _measure(spec: EvaluateSpec, fetch_weights_into: Callable[[Path], None], context: StepContext) -> EvaluationReport:
    # Importing torch-fidelity takes many seconds, and a finished evaluation does not need it.
    from components.evaluate.measure import measure  # noqa: PLC0415

    search_as_usual()
    return measure(spec, fetch_weights_into, context)


def _fetch_checkpoint(spec: EvaluateSpec, folder: Path, *, context: StepContext) -> None:
    """Fetch the weights to be measured into `folder` as `weights.safetensors`."""
    file = EmaName(spec.sampling.ema).file
    near = context.layout.locate(spec.checkpoint.uri)
    checkpoints = CheckpointStore(context.store, context.layout.run(spec.checkpoint.run_key).home_of(near), warn=context.events.note)
    fetched = checkpoints.fetch_copy(spec.checkpoint.digest, folder / "checkpoint", files=[file], near=near)
    (fetched.directory / file).replace(folder / "weights.safetensors")


def _champion_scores(
    spec: EvaluateSpec, report: EvaluationReport, registry: Registry, context: StepContext, verify_key: str | None, *, is_student: bool
) -> ChampionScores | None:
    """Return the champion's metrics under the protocol of `spec`, measured now if they never were; `is_student` is of the challenger.

    Where its version is deleted meanwhile, they are those of the champion after it, or None if there is none.
    """
    scores: ChampionScores | None = None
    while (version := registry.version_at(CHAMPION)) is not None and (scores is None or scores.version != str(version.version)):
        scores = _scores_of_version(version, spec, report, registry, context, verify_key, is_student=is_student)
        if scores.problem is None:
            return scores
    return None if version is None else scores


def _scores_of_version(
    model_version: ModelVersion,
    spec: EvaluateSpec,
    report: EvaluationReport,
    registry: Registry,
    context: StepContext,
    verify_key: str | None,
    *,
    is_student: bool,
) -> ChampionScores:
    version, tags = str(model_version.version), VersionTags.from_mlflow(model_version.tags)
    if tags.is_of(spec.checkpoint.digest, spec.sampling.ema):
        return _scores_of(report, version, is_challenger=True)
    try:
        champion, weights = open_champion(registry, model_version, context.scratch(WorkFolder.CHAMPIONS), verify_key=verify_key)
    except NotMeasurable as problem:
        return _missing_scores(version, tags, f"cannot be measured: {problem}", context)
    image_px = champion.model.network.image_px
    if image_px != spec.dataset.image_px:
        return _missing_scores(version, tags, f"generates images of {image_px} px, this dataset has {spec.dataset.image_px} px", context)
    sampling = champion.sampling_beside(spec.sampling, challenger_is_student=is_student)
    champion_spec = spec.model_copy(update={"checkpoint": champion.checkpoint, "model": champion.model, "sampling": sampling})
    champion_spec = EvaluateSpec.model_validate_json(champion_spec.model_dump_json())  # drops cached properties of `spec`
    measured = finished_report(champion_spec, context, with_later_metrics=False)
    if measured is None:
        context.events.note(f"champion version {version} was not measured under this protocol yet: measuring it")
        measured = _measure(champion_spec, lambda folder: _copy(weights, folder / "weights.safetensors"), context)
    return _scores_of(measured, version, sampling=champion_spec.how_drawn_beside(spec.sampling))


def _missing_scores(version: str, tags: VersionTags, problem: str, context: StepContext) -> ChampionScores:
    context.events.note(f"champion version {version} {problem}")
    return ChampionScores(version=version, checkpoint_digest=tags.checkpoint_digest, problem=problem)


def _scores_of(report: EvaluationReport, version: str, *, is_challenger: bool = False, sampling: str | None = None) -> ChampionScores:
    return ChampionScores(
        version=version,
        checkpoint_digest=report.checkpoint_digest,
        is_challenger=is_challenger,
        sampling=sampling,
        metrics=report.metrics,
        intervals=report.intervals,
        grid_uri=report.grid_uri,
    )


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _publish(report: EvaluationReport, spec: EvaluateSpec, recipe: TrainingRecipe, context: StepContext) -> None:
    """Log the metrics to MLflow: on the evaluation's own run, and on the training's at the checkpoint's step."""
    tracking = context.tracking
    with tracking.mark_running(tracking.step_run("evaluate")) as run_id:
        tracking.set_tags(
            run_id,
            {
                TAG_CHECKPOINT: report.checkpoint_digest,
                "protocol.digest": report.protocol_digest,
                "protocol.name": spec.protocol.name,
                "protocol": json.dumps(report.protocol.model_dump(mode="json"), sort_keys=True),
            },
        )
        tracking.log_values(run_id, report.metrics, step=report.checkpoint_step)
        tracking.log_text(run_id, report.model_dump_json(indent=2), "evaluation.json")
        with own_folder(context.scratch(WorkFolder.IMAGES), report.checkpoint_digest[:16]) as folder:
            for uri in filter(None, (report.grid_uri, report.contact_uri)):
                stored = context.layout.locate(uri)
                image = folder / stored.name
                context.store.get_file(stored, image)
                tracking.log_artifact(run_id, image, "samples")
                if uri == report.grid_uri:
                    tracking.log_artifact(tracking.pipeline_run().info.run_id, image)  # MLflow compares files at the top only
        tracking.log_dataset(run_id, spec.dataset, context="reference")
    trained = tracking.step_run("train", run_key=report.run_key, name=f"train-{report.run_key}")
    LoggedModels(tracking).log_evaluation(trained.info.run_id, report)
    show_evaluation(report, spec, recipe, tracking, evaluation_run_id=run_id, trained=trained)
    # Retention keeps the checkpoints with the best evaluation.
    measured = context.layout.locate(spec.checkpoint.uri)
    checkpoints = CheckpointStore(context.store, context.layout.run(report.run_key).home_of(measured))
    checkpoints.score(measured, report.headline, report.metrics[report.headline])
