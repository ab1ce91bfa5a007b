"""Post-hoc EMA: weights of another EMA width, computed after training from the snapshots of a run.

Promises: the result is a checkpoint of one tensor group, `ema-<sigma_rel>`, stored beside the run's others, with the distance of its
profile to the requested one; a corrupt snapshot is reported and left out; only one snapshot is in memory at a time. The mathematics is in
`model/ema_profiles.py`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from components.errors import BadInput, DataRefused
from components.registry.tags import VersionTags
from components.reports.image_grid import enlarge, grid
from components.reports.listing import list_some
from components.runtime.context import StepContext
from components.serving.register_version import UnevaluatedModel
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoint_names import CommittedCheckpoint
from components.stores.checkpoints import CheckpointStore
from components.stores.quarantine import quarantine
from components.system.locks import lock
from components.system.own_folder import own_folder
from components.system.work_folders import WorkFolder
from components.weights.ema_width import check_width
from model.canonical import JsonObject
from model.checkpoint import CheckpointState, publish, read
from model.checkpoint_manifest import Checkpoint, CheckpointInvalid, directory_name
from model.config import ModelSpec, SamplingConfig, student_sampling
from model.ema import RAW_WEIGHTS, EmaName
from model.ema_profiles import recombine
from model.generator import Generator
from model.trainer import NUM_SAMPLES


@dataclass(frozen=True)
class PosthocEma:
    """A post-hoc EMA: its run, width and step, where it is stored, and how well its profile is matched.

    `error` is the relative distance between the profiles, see `model.ema_profiles.Recombination`.
    """

    run_key: str
    sigma_rel: float
    step: int
    error: float
    num_snapshots: int
    checkpoint: Checkpoint
    uri: StoreUri
    model: ModelSpec
    dataset_digest: str
    sampling: SamplingConfig | None
    """How a student of few steps draws images; None of another network."""

    @property
    def name(self) -> EmaName:
        return EmaName.of_width(self.sigma_rel)


@dataclass(frozen=True)
class _WeightedSum:
    tensors: dict[str, Tensor]
    identity: JsonObject
    coefficients: dict[str, float]
    error: float
    num_snapshots: int


class _SnapshotCorrupt(Exception):
    def __init__(self, entry: CommittedCheckpoint) -> None:
        super().__init__(str(entry.uri))
        self.entry = entry


def compute_posthoc_ema(
    run_key: str,
    sigma_rel: float,
    context: StepContext,
    *,
    step: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PosthocEma:
    """Recombine the snapshots of the run `run_key` to the EMA of width `sigma_rel` at `step`.

    By default, that is the step of its newest snapshot that can be read.

    Raises:
        BadInput: if no EMA has that width, or the run has no snapshot of that step that can be read.
        DataRefused: if all of its snapshots are incomplete or corrupt.
    """
    check_width(sigma_rel)
    run = context.layout.run(run_key)
    snapshots = CheckpointStore(context.store, run.snapshots, warn=context.events.note)
    entries = _list_snapshots(snapshots, run_key, context)
    scratch = context.scratch(WorkFolder.AVERAGES, run_key)
    while True:
        chosen = _one_per_step(entries, step)
        target = chosen[0].step
        try:
            with own_folder(scratch, "snapshots") as folder:
                summed = _recombine_snapshots(snapshots, chosen, target, sigma_rel, folder, on_progress)
            break
        except _SnapshotCorrupt as corrupt:
            context.events.note(f"snapshot {corrupt.entry.uri} is corrupt and left out: {corrupt.__cause__}")
            snapshots.quarantine(corrupt.entry.uri, str(corrupt.__cause__))
            entries = [entry for entry in entries if entry != corrupt.entry]
            if not entries:
                raise DataRefused(f"all snapshots of run {run_key} are corrupt or incomplete") from corrupt
    name = EmaName.of_width(sigma_rel)
    facts = {"identity": summed.identity, "sigma_rel": sigma_rel, "error": summed.error, "coefficients": summed.coefficients}
    with lock(scratch / f"{name.setting}.lock"):
        checkpoint = publish(CheckpointState(target, {name.group: summed.tensors}, facts), scratch / name.setting)
    averages = CheckpointStore(context.store, run.averages)
    _set_damaged_aside(averages, run.averages / directory_name(target) / name.setting, context)
    uri = averages.upload(checkpoint, name.setting)
    return PosthocEma(
        run_key=run_key,
        sigma_rel=sigma_rel,
        step=target,
        error=summed.error,
        num_snapshots=summed.num_snapshots,
        checkpoint=checkpoint,
        uri=uri,
        model=ModelSpec.from_identity(summed.identity),
        dataset_digest=str(summed.identity["dataset_digest"]),
        sampling=student_sampling(summed.identity, name.setting),
    )


def find_student_sampling(run_key: str, context: StepContext) -> SamplingConfig | None:
    """Return how the run `run_key` draws images if it is a student with snapshots; None of another network. Reads no weights.

    Raises:
        BadInput: if the run has no snapshots.
    """
    snapshots = CheckpointStore(context.store, context.layout.run(run_key).snapshots)
    for entry in _list_snapshots(snapshots, run_key, context):
        try:
            identity = snapshots.state(entry.uri)["identity"]
        except (CheckpointInvalid, ObjectMissing, DigestMismatch):
            continue
        return student_sampling(identity, RAW_WEIGHTS.setting)
    return None


def _set_damaged_aside(averages: CheckpointStore, uri: StoreUri, context: StepContext) -> None:
    """Move what is stored of an EMA to quarantine if it is damaged, so that it is not overwritten."""
    try:
        averages.verify(uri)
    except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
        quarantine([item.uri for item in context.store.list(uri)], str(problem), store=context.store, layout=context.layout)


def draw_samples(ema: PosthocEma, sampling: SamplingConfig) -> np.ndarray:
    """Draw the fixed samples that every run logs, as one grid (uint8, h x w x 3)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = load_file(ema.checkpoint.directory / ema.name.file)
    generator = Generator.from_spec(weights, ema.model, device=device)
    images = generator.draw(sampling, range(NUM_SAMPLES), pass_images=NUM_SAMPLES)
    return grid([enlarge(tile) for tile in images.permute(0, 2, 3, 1).numpy()])


def to_unevaluated(ema: PosthocEma, sampling: SamplingConfig, licence: str) -> UnevaluatedModel:
    """Return the EMA as a model to register."""
    return UnevaluatedModel(
        checkpoint=ema.checkpoint,
        ema_name=ema.name,
        uri=ema.uri,
        run_key=ema.run_key,
        spec=ema.model,
        sampling=sampling,
        licence=licence,
        card=(
            f"Post-hoc EMA of run `{ema.run_key}` with sigma_rel {ema.name}, ending at step {ema.step}, recombined from "
            f"{ema.num_snapshots} snapshots; its profile is matched to {ema.error:.2%}.\n\n"
            "Not evaluated by the pipeline: promoting it needs `--force`.\n"
        ),
        tags=VersionTags(
            source="recombined",
            sigma_rel=ema.name.setting,
            checkpoint_step=ema.step,
            dataset_digest=ema.dataset_digest,
        ),
        is_student=ema.sampling is not None,
    )


def _list_snapshots(snapshots: CheckpointStore, run_key: str, context: StepContext) -> list[CommittedCheckpoint]:
    if committed := snapshots.list_committed():
        return committed
    if context.store.folders(context.layout.run(run_key).prefix):
        raise BadInput(
            f"run {run_key} has no EMA snapshots to recombine",
            hint="train with training.ema_snapshot_every_steps: it can be set when a run is resumed, too",
        )
    keys = context.store.folders(context.layout.runs)
    raise BadInput(f"there is no run {run_key!r}", hint=f"runs in this store: {list_some(keys) or 'none yet'}")


def _one_per_step(snapshots: list[CommittedCheckpoint], step: int | None) -> list[CommittedCheckpoint]:
    """Return one snapshot of each step up to `step`, newest first; attempts at the same step stored the same weights."""
    kept = {entry.step: entry for entry in reversed(snapshots) if step is None or entry.step <= step}
    if not kept:
        raise BadInput(f"--step {step} is before the first snapshot", hint=f"the first is at step {snapshots[-1].step}")
    if step is not None and step not in kept:
        near = min(snapshots, key=lambda entry: abs(entry.step - step))
        raise BadInput(f"there is no snapshot of step {step}", hint=f"the nearest is at step {near.step}")
    return [kept[at] for at in sorted(kept, reverse=True)]


def _recombine_snapshots(
    snapshots: CheckpointStore,
    chosen: list[CommittedCheckpoint],
    step: int,
    sigma_rel: float,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> _WeightedSum:
    """Add up the snapshots in float64, one at a time."""
    total: dict[str, Tensor] = {}
    newest = _fetch(snapshots, chosen[0], folder)
    widths = sorted(newest.tensors)
    pairs = [(entry.step, width) for entry in chosen for width in map(_width_of, widths)]
    plan = recombine(pairs, step, sigma_rel)
    coefficients = iter(plan.coefficients)
    for number, entry in enumerate(chosen):
        state = newest if number == 0 else _fetch(snapshots, entry, folder)
        if sorted(state.tensors) != widths or state.facts["identity"] != newest.facts["identity"]:
            raise _SnapshotCorrupt(entry) from ValueError("it holds other EMAs, or belongs to another run")
        for group in widths:
            coefficient = next(coefficients)
            for name, tensor in state.tensors[group].items():
                total.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64)).add_(tensor, alpha=coefficient)
        on_progress(number + 1, len(chosen))
    shares = {f"{at}/{width:g}": coefficient for (at, width), coefficient in zip(pairs, plan.coefficients, strict=True)}
    tensors = {name: tensor.float() for name, tensor in total.items()}
    return _WeightedSum(tensors, newest.facts["identity"], shares, plan.error, len(chosen))


def _width_of(group: str) -> float:
    name = EmaName.from_group(group)
    width = None if name is None else name.sigma_rel
    if width is None:
        raise DataRefused(f"a snapshot holds the group {group!r}, which is no power-function EMA")
    return width


def _fetch(snapshots: CheckpointStore, entry: CommittedCheckpoint, folder: Path) -> CheckpointState:
    try:
        return read(snapshots.fetch(entry.uri, folder).directory)
    except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
        raise _SnapshotCorrupt(entry) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)
