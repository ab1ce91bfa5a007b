"""The register step: the evaluated checkpoint becomes a model version, and `challenger` points at it.

Promises: the same weights give the same version, however often and from however many places; the alias is set only after the version as
the registry stores it has answered over HTTP.
"""

from pathlib import Path

from components.errors import DataRefused
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision, RegisteredVersion
from components.register.card import model_card, version_description
from components.registry.client import Registry
from components.registry.config import RegistryConfig
from components.registry.promotions.moves import CHALLENGER
from components.registry.tags import VersionTags
from components.registry.version_files import WEIGHTS_FILE
from components.runtime.context import StepContext
from components.serving.register_version import NewVersion, register_version
from components.storage import file_sha256
from components.stores.checkpoints import CheckpointStore
from components.tracking.logged_models import LoggedModels
from components.tracking.pipeline_run import Facts, describe_pipeline_run
from components.tracking.tags import TAG_GRID, TAG_MODEL, TAG_VERSION, TAG_VERSION_REUSED
from components.tracking.ui_pages import artifact_image
from model.config import SamplingConfig
from model.description import VersionDescription
from model.ema import EmaName


def run(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    report: EvaluationReport,
    gate: GateDecision,
    sampling: SamplingConfig,
    config: RegistryConfig,
    context: StepContext,
) -> RegisteredVersion:
    """Register `checkpoint` and return its version.

    Raises:
        DataRefused: if the manifests are of different checkpoints, or the stored model does not work.
    """
    if len({checkpoint.digest, report.checkpoint_digest, gate.checkpoint_digest}) != 1:
        raise DataRefused("the evaluation or the gate's decision is of another checkpoint than the one to register")
    if report.ema != sampling.ema:
        raise DataRefused(f"the average {report.ema!r} of the weights was evaluated, sampling.ema {sampling.ema!r} is to be registered")
    registry, tracking = Registry(context.tracking, config.model_name), context.tracking

    def build(folder: Path) -> NewVersion:
        weights = _fetch_weights(checkpoint, sampling.ema, folder, context)
        trained = tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
        card = model_card(config.model_name, checkpoint, dataset, report, gate, sampling)
        run = tracking.pipeline_run()
        return NewVersion(
            weights=weights,
            description=VersionDescription(
                **dict(checkpoint.recipe.model_spec),
                sampling=sampling,
                checkpoint_digest=checkpoint.digest,
                dataset_digest=dataset.digest,
                licence=dataset.licence,
                metrics=report.metrics,
                protocol=report.protocol.model_dump(mode="json"),
                weights_sha256=file_sha256(weights),
                is_student=checkpoint.recipe.distill is not None,
            ),
            card=card,
            tags=_tags(checkpoint, dataset, report, gate),
            run_id=trained,
            model_id=LoggedModels(tracking).log_evaluation(trained, report),
            page=version_description(card, artifact_image(run.info.run_id, run.data.tags[TAG_GRID])) if TAG_GRID in run.data.tags else None,
        )

    with tracking.mark_running(tracking.step_run("register")) as run_id:
        version, is_new = register_version(
            registry, checkpoint.digest, sampling.ema, image_px=dataset.image_px, build=build, context=context
        )
        number = str(version.version)
        if not is_new:
            context.events.note(f"checkpoint {checkpoint.digest[:12]} is version {number} of {config.model_name} already, nothing to do")
        registry.set_alias(CHALLENGER, number)
        tags = {TAG_MODEL: config.model_name, TAG_VERSION: number}
        tracking.set_tags(run_id, tags)
    describe_pipeline_run(tracking, Facts(tags={**tags, TAG_VERSION_REUSED: "false" if is_new else "true"}))
    context.events.note(f"{config.model_name} version {number} is {CHALLENGER}")
    return RegisteredVersion(
        name=config.model_name,
        version=number,
        aliases=registry.aliases_of(number),
        checkpoint_digest=checkpoint.digest,
        model_uri=f"models:/{config.model_name}/{number}",
    )


def _fetch_weights(checkpoint: CheckpointManifest, ema: str, folder: Path, context: StepContext) -> Path:
    """Download the weights `ema` of the checkpoint below `folder`, and return their file, named as in a version."""
    file = EmaName(ema).file
    near = context.layout.locate(checkpoint.uri)
    checkpoints = CheckpointStore(context.store, context.layout.run(checkpoint.run_key).home_of(near), warn=context.events.note)
    fetched = checkpoints.fetch_copy(checkpoint.digest, folder, files=[file], near=near)
    return (fetched.directory / file).rename(folder / WEIGHTS_FILE)


def _tags(checkpoint: CheckpointManifest, dataset: DatasetManifest, report: EvaluationReport, gate: GateDecision) -> VersionTags:
    return VersionTags(
        checkpoint_digest=checkpoint.digest,
        ema=report.ema,
        run_key=checkpoint.run_key,
        checkpoint_uri=checkpoint.uri,
        checkpoint_step=checkpoint.step,
        dataset_digest=dataset.digest,
        licence=dataset.licence,
        protocol_digest=report.protocol_digest,
        protocol_name=report.protocol.name,
        evaluation_uri=report.uri,
        gate=gate.decision,
        metrics=report.metrics,
    )
