"""Registers weights as a model version, for the register step, `import-checkpoint`, or a post-hoc EMA.

Promises: the same weights give the same version, however often and from however many processes; a version's tag `serving.trial` is `passed`
only if the version as the registry stores it has answered over HTTP. Weights that the pipeline has not evaluated carry no gate decision, so
that promoting them needs `--force` and a reason, which is logged. Sets no alias.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from components.errors import DataRefused, shorten
from components.registry.client import ModelVersion, Registry
from components.registry.tags import PASSED, VersionTags
from components.runtime.context import StepContext
from components.serving.package import save_model, servable, try_out
from components.storage import StoreUri, file_sha256
from components.system.locks import lock
from components.system.own_folder import own_folder
from components.system.work_folders import WorkFolder
from components.tracking.logged_models import LoggedModels
from model.checkpoint_manifest import Checkpoint
from model.config import ModelSpec, SamplingConfig
from model.description import VersionDescription
from model.ema import EmaName

_MODEL_DESCRIPTION = "Diffusion Transformer face generator; versions are made by the celebdit pipeline."


@dataclass(frozen=True)
class NewVersion:
    """What a version is made from: weights, their description and card, tags, and the LoggedModel of the MLflow run that made them."""

    weights: Path
    description: VersionDescription
    card: str
    tags: VersionTags
    run_id: str
    model_id: str
    page: str | None = None
    """What MLflow's page of the version shows, if not the card."""


@dataclass(frozen=True)
class UnevaluatedModel:
    """Weights that the pipeline has not evaluated, and what is known of them; `tags` adds to what `register_unevaluated` sets."""

    checkpoint: Checkpoint
    ema_name: EmaName
    uri: StoreUri
    run_key: str
    spec: ModelSpec
    sampling: SamplingConfig
    licence: str
    card: str
    tags: VersionTags
    is_student: bool = False


def register_version(
    registry: Registry, checkpoint_digest: str, ema: str, *, image_px: int, build: Callable[[Path], NewVersion], context: StepContext
) -> tuple[ModelVersion, bool]:
    """Return the version that holds the weights `ema` of a checkpoint, and whether it is new; `build` gets an empty folder to work in.

    A version whose files are gone, or are not those that were registered, is left as it is and registered again under a new number.

    Raises:
        DataRefused: if the stored version does not answer with an image; it keeps a tag with the reason.
    """
    scratch = context.scratch(WorkFolder.REGISTER)
    waiting = "another process registers the same weights; waiting for it"
    with lock(scratch / f"{registry.name}-{checkpoint_digest[:16]}-{ema}.lock", on_wait=lambda: context.events.note(waiting)):
        return _register_version(registry, checkpoint_digest, ema, image_px=image_px, build=build, context=context)


def _register_version(
    registry: Registry, checkpoint_digest: str, ema: str, *, image_px: int, build: Callable[[Path], NewVersion], context: StepContext
) -> tuple[ModelVersion, bool]:
    version = _usable_version(registry, checkpoint_digest, ema, context)
    is_new = version is None
    if version is None:
        registry.ensure(_MODEL_DESCRIPTION)
        with own_folder(context.scratch(WorkFolder.REGISTER), checkpoint_digest[:16]) as folder:
            version = _add_version(registry, build(folder), folder)
    if VersionTags.from_mlflow(version.tags).trial != PASSED:
        _try_stored(registry, str(version.version), image_px, context)
    return version, is_new


def _add_version(registry: Registry, new: NewVersion, folder: Path) -> ModelVersion:
    save_model(folder / "model", weights=new.weights, description=new.description, card=new.card)
    return registry.add_version(folder / "model", tags=new.tags, model_id=new.model_id, run_id=new.run_id, description=new.page or new.card)


def _usable_version(registry: Registry, checkpoint_digest: str, ema: str, context: StepContext) -> ModelVersion | None:
    """Return the oldest version of these weights whose files are there, by name and size; the others get a tag that says what is wrong."""
    while (version := registry.version_of(checkpoint_digest, ema)) is not None:
        try:
            registry.check_present(version)
        except DataRefused as lost:
            context.events.note(f"{lost.message}: registering the checkpoint again")
            registry.mark_lost(str(version.version), lost.message)
        else:
            return version
    return None


def register_unevaluated(model: UnevaluatedModel, model_name: str, run_id: str, context: StepContext) -> tuple[str, bool]:
    """Register `model` as a version made by the MLflow run `run_id`; return its number, and whether it is new.

    Raises:
        DataRefused: if the stored version does not answer with an image.
    """
    digest, ema = model.checkpoint.digest, model.sampling.ema
    weights, uri = model.checkpoint.directory / model.ema_name.file, context.layout.key_of(model.uri)

    def build(folder: Path) -> NewVersion:
        logged = LoggedModels(context.tracking).find_or_create(
            run_id,
            name=model.ema_name.group.replace(".", "_"),
            digest=digest,
            ema=ema,
            uri=uri,
            run_key=model.run_key,
        )
        return NewVersion(
            weights=weights,
            description=VersionDescription(
                **dict(model.spec),
                sampling=model.sampling,
                checkpoint_digest=digest,
                licence=model.licence,
                weights_sha256=file_sha256(weights),
                is_student=model.is_student,
            ),
            card=model.card,
            tags=replace(
                model.tags,
                checkpoint_digest=digest,
                ema=ema,
                run_key=model.run_key,
                checkpoint_uri=uri,
                licence=model.licence,
            ),
            run_id=run_id,
            model_id=str(logged.model_id),
        )

    registry = Registry(context.tracking, model_name)
    version, is_new = register_version(registry, digest, ema, image_px=model.spec.network.image_px, build=build, context=context)
    return str(version.version), is_new


def _try_stored(registry: Registry, number: str, image_px: int, context: StepContext) -> None:
    """Serve the version as the registry stores it and record whether it answered."""
    with own_folder(context.scratch(WorkFolder.TRIALS), f"{registry.name}-{number}") as scratch:
        try:
            try_out(servable(registry.files_of(number, scratch), scratch), image_px=image_px)
        except DataRefused as refused:
            registry.tag_version(number, VersionTags(trial=shorten(f"failed: {refused.message}", max_characters=1000)))
            raise
    registry.tag_version(number, VersionTags(trial=PASSED))
    context.events.note(f"version {number} answers over HTTP with an image")
