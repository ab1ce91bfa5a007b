"""Resolves a source of weights to files: a local checkpoint, one in object storage, a training run, or a registered version.

Promises: every file is verified against its manifest, and only safetensors and JSON are read; the result names the checkpoint and which of
its weights were chosen. Sampling is in `model/generator.py`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from components.command_settings import CommandSettings
from components.errors import BadInput, DataRefused
from components.registry.model_uri import ModelUri
from components.reports.listing import list_some, list_steps
from components.runtime.context import StepContext
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoint_names import is_note
from components.stores.checkpoints import CheckpointStore
from components.system.locks import lock
from components.system.work_folders import WorkFolder
from components.tracking.training_names import find_run_key
from components.validation import describe
from model.canonical import JsonObject
from model.checkpoint_manifest import MANIFEST_FILE, STATE_FILE, CheckpointInvalid, UnsupportedCheckpointFormat, verify
from model.config import ModelSpec, SamplingConfig, student_sampling
from model.ema import RAW_WEIGHTS, EmaName
from model.generator import Generator, WeightsMismatch

_KEY = re.compile(r"runs/[0-9a-f]{16}/")
"""How the address of a checkpoint begins in manifests and in MLflow's tags."""
_AT_STEP = re.compile(r"(.+)@([0-9]{1,12})")


@dataclass(frozen=True)
class ResolvedWeights:
    """A verified file of weights on this machine, not loaded yet, with the model that they belong to and where they come from.

    `sampling` is how a version or a student of few steps draws images; None for other checkpoints.
    """

    file: Path
    model: ModelSpec
    sampling: SamplingConfig | None
    ema: str
    digest: str
    source: str
    is_student: bool = False
    """Whether it was distilled: trained for the sampler and steps of `sampling` alone."""

    def generator(self, device: torch.device) -> Generator:
        """Load the weights into their network.

        Raises:
            DataRefused: if the weights cannot be read, are not finite or do not fit the network of their checkpoint.
        """
        try:
            return Generator.from_spec(load_file(self.file), self.model, device=device)
        except (WeightsMismatch, SafetensorError, ValueError, KeyError, OverflowError) as error:  # of any header
            raise DataRefused(f"{self.source}: {error}") from error


def needs_servers(source: str) -> bool:
    """Return whether `source` is anything but a folder on this machine."""
    return not Path(source).is_dir()


def find_weights(source: str, *, ema: str | None, context: StepContext | None) -> ResolvedWeights:
    """Return the weights that `source` names; `context` connects to the servers and may be None for a folder.

    Raises:
        BadInput: if `source` names nothing. DataRefused: if the checkpoint or version is incomplete or corrupt.
    """
    if not needs_servers(source):
        return _resolve_folder(Path(source), ema)
    assert context is not None, "only a folder needs no servers"
    if source.startswith("models:"):
        uri = ModelUri.parse(source)
        if uri is None or uri.version is None:
            raise BadInput(f"{source!r} is not a model version", hint="write models:/NAME@champion or models:/NAME/3")
        return _resolve_version(uri.name, uri.version, ema, context)
    if source.startswith("s3://"):
        return _resolve_stored(StoreUri.parse(source), ema, context)
    if _KEY.match(source):
        return _resolve_stored(context.layout.locate(source), ema, context)
    return _resolve_run(source, ema, context)


def _resolve_folder(folder: Path, ema: str | None) -> ResolvedWeights:
    folder = _attempt_in(folder)
    if not (folder / MANIFEST_FILE).exists():
        raise BadInput(f"{folder} is not a checkpoint: it has no {MANIFEST_FILE}", hint="name the folder step-... of a checkpoint")
    try:
        checkpoint = verify(folder, is_sidecar=is_note)  # a copy from object storage has notes beside the files
    except CheckpointInvalid as error:
        raise DataRefused(f"checkpoint {folder} is incomplete or corrupt: {error}") from error
    except UnsupportedCheckpointFormat as error:
        raise BadInput(f"{folder}: {error}", hint="use the version of celebdit that wrote it") from error
    return _resolve_checkpoint(folder, checkpoint.digest, sorted(checkpoint.files), ema, str(folder))


def _attempt_in(folder: Path) -> Path:
    """Return the folder that holds the files: in object storage, and so in a copy of it, each attempt has its own below the step's."""
    if (folder / MANIFEST_FILE).exists():
        return folder
    attempts = sorted(folder.glob(f"*/{MANIFEST_FILE}")) if folder.name.startswith("step-") else []
    return attempts[-1].parent if attempts else folder  # all attempts at a step have equal bytes


def _resolve_stored(uri: StoreUri, ema: str | None, context: StepContext) -> ResolvedWeights:
    checkpoints = CheckpointStore(context.store, uri)
    try:
        files = [item.uri.name for item in context.store.list(uri)]
        chosen = _choose(_weights_in(files), ema, str(uri))
        folder = context.scratch(WorkFolder.SAMPLES, checkpoints.digest(uri)[:16])
        fetched = checkpoints.fetch(uri, folder, files=[chosen.file, STATE_FILE])
    except (ObjectMissing, DigestMismatch, CheckpointInvalid) as error:
        raise DataRefused(
            f"checkpoint {uri} is incomplete or corrupt: {error}", hint="name a folder .../checkpoints/step-.../ATTEMPT"
        ) from error
    return _resolve_checkpoint(fetched.directory, fetched.digest, sorted(files), ema, str(uri))


def _resolve_run(source: str, ema: str | None, context: StepContext) -> ResolvedWeights:
    """Resolve the newest checkpoint of a training, or with NAME@STEP the checkpoint or EMA snapshot of that step.

    NAME is a run key or its first characters, the id of a pipeline run that trained or reused it, or MLflow's id of the training.
    """
    matched = _AT_STEP.fullmatch(source)
    name, step = (matched[1], int(matched[2])) if matched else (source, None)
    key = find_run_key(name, context.tracking)
    if key is None:
        raise BadInput(
            f"{name!r} is not a checkpoint folder, an s3:// location of one, a run, or a model version",
            hint="name a run key or run id as `celebdit run` prints it, or models:/NAME@champion",
        )
    run = context.layout.run(key)
    committed = CheckpointStore(context.store, run.checkpoints).list_committed()
    if step is not None:
        committed += CheckpointStore(context.store, run.snapshots).list_committed()
    if not committed:
        raise BadInput(f"run {name!r} has no checkpoint below {context.root}", hint="name a run key as `celebdit run` prints it")
    chosen = next((entry for entry in committed if step is None or entry.step == step), None)
    if chosen is None:
        steps = list_steps(entry.step for entry in committed)
        raise BadInput(f"run {name!r} has no checkpoint or snapshot of step {step}", hint=f"it has steps {steps}")
    return _resolve_stored(chosen.uri, ema, context)


def _resolve_version(name: str, version: str, ema: str | None, context: StepContext) -> ResolvedWeights:
    from components.registry.client import Registry  # noqa: PLC0415 - imports MLflow, which takes seconds

    registry = Registry(context.tracking, name)
    number = str(registry.resolve(version).version)
    folder = context.scratch(WorkFolder.MODELS)
    with lock(folder / f"{name}-{number}.lock"):  # of two processes one downloads the files
        files = registry.files_of(number, folder, verify_key=CommandSettings.from_environment().verify_key)
    sampling = files.description.sampling
    if ema is not None and ema != sampling.ema:
        raise BadInput(f"version {number} of {name!r} holds the weights {sampling.ema!r} only", hint="sample its run or checkpoint instead")
    return ResolvedWeights(
        file=files.weights,
        model=files.description.model_spec,
        sampling=sampling,
        ema=sampling.ema,
        digest=files.description.checkpoint_digest,
        source=f"models:/{name}/{number}",
        is_student=files.description.is_student,
    )


def _resolve_checkpoint(folder: Path, digest: str, files: list[str], ema: str | None, source: str) -> ResolvedWeights:
    chosen = _choose(_weights_in(files), ema, source)
    identity = _read_identity(folder / STATE_FILE)
    sampling = student_sampling(identity, chosen.setting)
    return ResolvedWeights(
        file=folder / chosen.file,
        model=_model_spec(identity, folder / STATE_FILE),
        sampling=sampling,
        ema=chosen.setting,
        digest=digest,
        source=source,
        is_student=sampling is not None,
    )


def _read_identity(path: Path) -> JsonObject:
    try:
        return dict(json.loads(path.read_text())["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataRefused(f"{path} does not describe the network of the weights: {error}") from error


def _model_spec(identity: JsonObject, path: Path) -> ModelSpec:
    try:
        return ModelSpec.from_identity(identity)
    except ValidationError as error:
        raise DataRefused(f"{path} does not describe the network of the weights: {describe(error, section='identity')}") from error
    except (ValueError, KeyError) as error:
        raise DataRefused(f"{path} does not describe the network of the weights: {error}") from error


def _weights_in(files: Iterable[str]) -> list[EmaName]:
    """Return the weights that a checkpoint with these files holds."""
    return [name for name in map(EmaName.from_file, files) if name is not None]


def _choose(names: Sequence[EmaName], ema: str | None, where: str) -> EmaName:
    """Return the weights `ema`; None is the widest power-function EMA, else the classic one, else the raw weights."""
    averages = sorted((name for name in names if not name.is_raw), key=lambda name: name.sigma_rel or 0.0)
    chosen = EmaName(ema) if ema is not None else (averages[-1] if averages else RAW_WEIGHTS)
    if chosen not in names:
        existing = list_some([*averages, RAW_WEIGHTS])
        raise BadInput(f"{where} has no average {ema!r} of the weights", hint=f"it has {existing}")
    return chosen
