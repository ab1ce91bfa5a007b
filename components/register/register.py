"""The register step: weights and serving code become a model version, tried out before `challenger` points at it.

Promises: the same checkpoint gives the same version, however often; the alias is set only after the stored model has drawn an image.
"""

import json
import shutil
from importlib.metadata import version as installed
from pathlib import Path

from components.checkpoints import CheckpointStore
from components.context import StepContext
from components.errors import DataRefused
from components.manifests import CheckpointManifest, DatasetManifest, EvaluationReport, GateDecision, RegisteredVersion
from components.registry import CHALLENGER, TAG_GATE, Registry, save_model, try_out
from components.registry_config import RegistryConfig
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from model import config as model_config
from model.checkpoint import CheckpointInvalid
from model.config import SamplingConfig

_REQUIREMENTS = ("torch", "numpy", "pandas", "pillow", "pydantic", "jaxtyping", "safetensors", "mlflow")


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
    registry = Registry(context.tracking, config.model_name)
    tracking = context.tracking
    with tracking.running(tracking.step_run("register")) as run_id:
        found = registry.version_of(checkpoint.digest)
        if found is not None:
            context.events.note(
                f"checkpoint {checkpoint.digest[:12]} is version {found.version} of {config.model_name} already, nothing to do"
            )
        else:
            registry.ensure("Diffusion Transformer face generator; versions are made by the celebdit pipeline.")
            folder = _build(checkpoint, dataset, report, sampling, context)
            try_out(folder)
            trained = tracking.step_run("train", run_key=checkpoint.run_key).info.run_id
            found = registry.add_version(
                folder,
                checkpoint_digest=checkpoint.digest,
                model_id=tracking.evaluated_checkpoint(trained, report),
                run_id=trained,
                tags=_tags(checkpoint, dataset, report, gate),
                description=_card(checkpoint, dataset, report),
            )
            shutil.rmtree(folder.parent, ignore_errors=True)
        number = str(found.version)
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


def _build(
    checkpoint: CheckpointManifest, dataset: DatasetManifest, report: EvaluationReport, sampling: SamplingConfig, context: StepContext
) -> Path:
    """Write the model as MLflow stores it, and return its folder."""
    scratch = context.scratch("register", checkpoint.digest[:16])
    group = "weights" if sampling.ema == "none" else f"ema-{sampling.ema}"
    checkpoints = CheckpointStore(context.store, context.root / "runs" / checkpoint.run_key)
    try:
        fetched = checkpoints.fetch(StoreUri.parse(checkpoint.uri), scratch, files=[f"{group}.safetensors"])
    except (ObjectMissing, DigestMismatch, CheckpointInvalid) as error:
        raise DataRefused(f"checkpoint {checkpoint.uri} is not whole: {error}", hint="run the train step again") from error
    folder = scratch / "model"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(
        folder,
        weights=fetched.directory / f"{group}.safetensors",
        description={
            "network": checkpoint.recipe["network"],
            "diffusion": checkpoint.recipe["diffusion"],
            "precision": checkpoint.recipe["training"]["precision"],
            "sampling": sampling.model_dump(mode="json"),
            "checkpoint_digest": checkpoint.digest,
            "dataset_digest": dataset.digest,
            "licence": dataset.licence,
            "metrics": report.metrics,
        },
        requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
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
        TAG_GATE: gate.decision,
        **{key: str(value) for key, value in report.metrics.items()},
    }


def _card(checkpoint: CheckpointManifest, dataset: DatasetManifest, report: EvaluationReport) -> str:
    """Return the version's description: what it is, made from what, how good under which protocol."""
    numbers = "\n".join(f"- `{key}`: {value:.4g}" for key, value in sorted(report.metrics.items()))
    return (
        f"Denoiser of run `{checkpoint.run_key}`, step {checkpoint.step}, checkpoint `{checkpoint.digest}`.\n\n"
        f"Data: {dataset.name}, {dataset.num_images} images, digest `{dataset.digest}`, licence: {dataset.licence}.\n\n"
        f"{numbers}\n\nProtocol:\n\n```json\n{json.dumps(report.protocol, indent=2, sort_keys=True)}\n```\n"
    )
