"""The register step: weights and serving code become a model version, tried out before `challenger` points at it.

Promises: the same weights give the same version, however often and from however many places; the alias is set only after the version as
the registry stores it has answered over HTTP.
"""

import shutil
from importlib.metadata import version as installed
from pathlib import Path

from components.errors import DataRefused
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision, RegisteredVersion
from components.register.card import model_card
from components.registry.client import TAG_GATE, WEIGHTS_FILE, Registry
from components.registry.config import RegistryConfig
from components.registry.promotions import CHALLENGER
from components.runtime.context import StepContext
from components.serving.package import save_model, try_out
from components.serving.register_version import PASSED, REQUIREMENTS, TAG_TRIAL
from components.storage import DigestMismatch, ObjectMissing, StoreUri, file_sha256
from components.stores.checkpoints import CheckpointStore
from model import config as model_config
from model.checkpoint_manifest import CheckpointInvalid
from model.config import SamplingConfig
from model.description import VersionDescription


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
    registry = Registry(context.tracking, config.model_name)
    tracking = context.tracking
    with tracking.running(tracking.step_run("register")) as run_id:
        found = registry.version_of(checkpoint.digest, sampling.ema)
        if found is not None:
            context.events.note(
                f"checkpoint {checkpoint.digest[:12]} is version {found.version} of {config.model_name} already, nothing to do"
            )
        else:
            registry.ensure("Diffusion Transformer face generator; versions are made by the celebdit pipeline.")
            card = model_card(config.model_name, checkpoint, dataset, report, gate, sampling)
            folder = _build(checkpoint, dataset, report, sampling, card, context)
            trained = tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
            found = registry.add_version(
                folder,
                checkpoint_digest=checkpoint.digest,
                ema=sampling.ema,
                model_id=tracking.evaluated_checkpoint(trained, report),
                run_id=trained,
                tags=_tags(checkpoint, dataset, report, gate),
                description=card,
            )
            shutil.rmtree(folder.parent, ignore_errors=True)
        number = str(found.version)
        if found.tags.get(TAG_TRIAL) != PASSED:
            _try_stored(registry, number, dataset.image_px, context)
        registry.set_alias(CHALLENGER, number)
        tracking.tag(run_id, {"model.name": config.model_name, "model.version": number})
    context.events.note(f"{config.model_name} version {number} is {CHALLENGER}")
    return RegisteredVersion(
        name=config.model_name,
        version=number,
        aliases=registry.aliases_of(number),
        checkpoint_digest=checkpoint.digest,
        model_uri=f"models:/{config.model_name}/{number}",
    )


def _try_stored(registry: Registry, number: str, image_px: int, context: StepContext) -> None:
    """Serve the version as the registry stores it and remember that it answered."""
    scratch = context.scratch("trials", f"{registry.name}-{number}")
    try:
        try_out(registry.files_of(number, scratch).folder, image_px=image_px)
    except DataRefused as refused:
        registry.tag_version(number, {TAG_TRIAL: f"failed: {refused.message}"[:1000]})
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    registry.tag_version(number, {TAG_TRIAL: PASSED})
    context.events.note(f"version {number} answers over HTTP with an image")


def _build(
    checkpoint: CheckpointManifest,
    dataset: DatasetManifest,
    report: EvaluationReport,
    sampling: SamplingConfig,
    card: str,
    context: StepContext,
) -> Path:
    """Write the model as MLflow stores it, and return its folder."""
    scratch = context.scratch("register", checkpoint.digest[:16])
    group = "weights" if sampling.ema == "none" else f"ema-{sampling.ema}"
    checkpoints = CheckpointStore(context.store, context.root / "runs" / checkpoint.run_key)
    try:
        fetched = checkpoints.fetch(StoreUri.parse(checkpoint.uri), scratch, files=[f"{group}.safetensors"])
    except (ObjectMissing, DigestMismatch, CheckpointInvalid) as error:
        raise DataRefused(f"checkpoint {checkpoint.uri} is not whole: {error}", hint="run the train step again") from error
    if fetched.digest != checkpoint.digest:
        raise DataRefused(f"checkpoint {checkpoint.uri} has digest {fetched.digest}, the train step handed on {checkpoint.digest}")
    weights = (fetched.directory / f"{group}.safetensors").rename(scratch / WEIGHTS_FILE)
    folder = scratch / "model"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(
        folder,
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
        ),
        card=card,
        requirements=[f"{name}=={installed(name)}" for name in REQUIREMENTS],
        model_package=Path(model_config.__file__).parent,
    )
    return folder


def _tags(checkpoint: CheckpointManifest, dataset: DatasetManifest, report: EvaluationReport, gate: GateDecision) -> dict[str, str]:
    return {
        "run_key": checkpoint.run_key,
        "checkpoint.uri": checkpoint.uri,
        "checkpoint.step": str(checkpoint.step),
        "dataset.digest": dataset.digest,
        "dataset.licence": dataset.licence,
        "protocol.digest": report.protocol_digest,
        "protocol.name": report.protocol.name,
        "evaluation.uri": report.uri,
        TAG_GATE: gate.decision,
        **{key: str(value) for key, value in report.metrics.items()},
    }
