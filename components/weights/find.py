"""Weights to draw from, wherever they are: a local checkpoint, one in object storage, a training run, or a registered version.

Promises: every file is checked against its manifest before it is loaded, and only safetensors and JSON are read; what comes out says which
checkpoint and which average of the weights it is. How images are drawn is `model/generator.py`'s business.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from components.errors import BadInput, DataRefused
from components.runtime.context import StepContext, describe
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoints import SNAPSHOTS, CheckpointStore, is_note
from model.checkpoint_manifest import MANIFEST_FILE, STATE_FILE, CheckpointInvalid, verify
from model.config import ModelSpec, SamplingConfig
from model.generator import Generator, WeightsMismatch

_MODEL = re.compile(r"models:/([A-Za-z0-9][A-Za-z0-9_.-]*)(?:@([A-Za-z0-9_-]+)|/([0-9]+))")
_RUN_KEY = re.compile(r"[0-9a-f]{16}")
_AT_STEP = re.compile(r"(.+)@([0-9]{1,12})")


@dataclass(frozen=True)
class Found:
    """Weights on this machine, with what is needed to draw from them and where they come from."""

    file: Path
    model: ModelSpec
    sampling: SamplingConfig | None
    ema: str
    digest: str
    described: str

    def generator(self, device: torch.device) -> Generator:
        """Return the network, ready to draw.

        Raises:
            DataRefused: if the weights do not fit the network that they came with.
        """
        try:
            return Generator.from_spec(load_file(self.file), self.model, device=device)
        except (WeightsMismatch, SafetensorError) as error:
            raise DataRefused(f"{self.described}: {error}") from error


def needs_servers(source: str) -> bool:
    """Return whether `source` is anything but a folder on this machine."""
    return not Path(source).is_dir()


def find_weights(source: str, *, ema: str | None, context: StepContext | None) -> Found:
    """Return the weights that `source` names; `context` reaches the servers and may be None for a folder.

    Raises:
        BadInput: if `source` names nothing. DataRefused: if what it names is not whole.
    """
    if not needs_servers(source):
        return _in_folder(Path(source), ema)
    assert context is not None, "only a folder needs no servers"
    if matched := _MODEL.fullmatch(source):
        return _registered(matched[1], matched[2] or matched[3], ema, context)
    if source.startswith("models:"):
        raise BadInput(f"{source!r} is not a model version", hint="write models:/NAME@champion or models:/NAME/3")
    if source.startswith("s3://"):
        return _stored(StoreUri.parse(source), ema, context)
    return _of_run(source, ema, context)


def _in_folder(folder: Path, ema: str | None) -> Found:
    if not (folder / MANIFEST_FILE).exists():
        raise BadInput(f"{folder} is not a checkpoint: it has no {MANIFEST_FILE}", hint="name the folder step-... of a checkpoint")
    try:
        checkpoint = verify(folder, beside=is_note)  # somebody may have copied it from object storage
    except CheckpointInvalid as error:
        raise DataRefused(f"checkpoint {folder} is not whole: {error}") from error
    return _of_checkpoint(folder, checkpoint.digest, sorted(checkpoint.files), ema, str(folder))


def _stored(uri: StoreUri, ema: str | None, context: StepContext) -> Found:
    checkpoints = CheckpointStore(context.store, uri)
    try:
        whole = [item.uri.name for item in context.store.list(uri)]
        chosen = _choose(_groups(whole), ema, str(uri))
        folder = context.scratch("samples", checkpoints.digest(uri)[:16])
        fetched = checkpoints.fetch(uri, folder, files=[f"{chosen}.safetensors", STATE_FILE])
    except (ObjectMissing, DigestMismatch, CheckpointInvalid) as error:
        raise DataRefused(f"checkpoint {uri} is not whole: {error}", hint="name a folder .../checkpoints/step-.../ATTEMPT") from error
    return _of_checkpoint(fetched.directory, fetched.digest, sorted(whole), ema, str(uri))


def _of_run(source: str, ema: str | None, context: StepContext) -> Found:
    """Find the newest checkpoint of a training, or with NAME@STEP what is stored of that step, be it a snapshot of the averages.

    The training is named by its run key or by a pipeline run that trained or reused it.
    """
    matched = _AT_STEP.fullmatch(source)
    name, step = (matched[1], int(matched[2])) if matched else (source, None)
    key = name if _RUN_KEY.fullmatch(name) else _key_of_pipeline_run(name, context)
    run = context.root / "runs" / key
    committed = CheckpointStore(context.store, run).committed()
    if step is not None:
        committed += CheckpointStore(context.store, run, folder=SNAPSHOTS).committed()
    if not committed:
        raise BadInput(f"run {name!r} has no checkpoint below {context.root}", hint="name a run key as `celebdit run` prints it")
    chosen = next((entry for entry in committed if step is None or entry.step == step), None)
    if chosen is None:
        steps = ", ".join(str(at) for at in sorted({entry.step for entry in committed}))
        raise BadInput(f"run {name!r} has stored nothing of step {step}", hint=f"it has steps {steps}")
    return _stored(chosen.uri, ema, context)


def _key_of_pipeline_run(name: str, context: StepContext) -> str:
    from components.tracking.client import TAG_KIND, TAG_RUN, TAG_RUN_KEY  # noqa: PLC0415 - imports MLflow, which takes seconds

    known = [] if "'" in name else context.tracking.search({TAG_RUN: name, TAG_KIND: "pipeline"})
    key = known[0].data.tags.get(TAG_RUN_KEY) if known else None
    if key is None:
        raise BadInput(
            f"{name!r} is neither a checkpoint's folder or s3:// location, a run, nor a model version",
            hint="name a run key or run id as `celebdit run` prints it, or models:/NAME@champion",
        )
    return key.split(",")[0]


def _registered(name: str, version: str, ema: str | None, context: StepContext) -> Found:
    from components.registry.client import Registry  # noqa: PLC0415 - imports MLflow, which takes seconds

    registry = Registry(context.tracking, name)
    number = str(registry.resolve(version).version)
    files = registry.files_of(number, context.scratch("models"))
    sampling = files.description.sampling
    if ema is not None and ema != sampling.ema:
        raise BadInput(f"version {number} of {name!r} holds the average {sampling.ema!r} only", hint="sample its run or checkpoint instead")
    return Found(
        file=files.weights,
        model=files.description.model_spec,
        sampling=sampling,
        ema=sampling.ema,
        digest=files.description.checkpoint_digest,
        described=f"models:/{name}/{number}",
    )


def _of_checkpoint(folder: Path, digest: str, files: list[str], ema: str | None, described: str) -> Found:
    chosen = _choose(_groups(files), ema, described)
    return Found(
        file=folder / f"{chosen}.safetensors",
        model=_model_of(folder / STATE_FILE),
        sampling=None,
        ema=chosen.removeprefix("ema-") if chosen != "weights" else "none",
        digest=digest,
        described=described,
    )


def _model_of(path: Path) -> ModelSpec:
    try:
        return ModelSpec.from_identity(json.loads(path.read_text())["identity"])
    except ValidationError as error:
        raise DataRefused(f"{path} does not say which network the weights are of: {describe(error, section='identity')}") from error
    except (OSError, ValueError, KeyError) as error:
        raise DataRefused(f"{path} does not say which network the weights are of: {error}") from error


def _groups(files: Any) -> list[str]:
    names = [str(name).removesuffix(".safetensors") for name in files if str(name).endswith(".safetensors")]
    return [name for name in names if name == "weights" or name.startswith("ema-")]


def _choose(groups: list[str], ema: str | None, where: str) -> str:
    """Return the group to draw from: the one asked for, or the widest power-function average, or else the classic one."""
    averages = sorted((name for name in groups if name != "weights"), key=_width)
    wanted = ("weights" if ema == "none" else f"ema-{ema}") if ema is not None else (averages[-1] if averages else "weights")
    if wanted not in groups:
        known = ", ".join([*(name.removeprefix("ema-") for name in averages), "none"])
        raise BadInput(f"{where} has no average {ema!r} of the weights", hint=f"it has {known}")
    return wanted


def _width(group: str) -> float:
    """Return the relative width of a power-function average, which is its name; another one's is not known and counts as the least."""
    try:
        return float(group.removeprefix("ema-"))
    except ValueError:
        return 0.0
