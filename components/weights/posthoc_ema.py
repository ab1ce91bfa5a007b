"""An average of another width, made after training from the snapshots of a run.

Promises: the result is a checkpoint of one group, `ema-<sigma_rel>`, stored whole beside the run's others, and says how near it comes to
the profile that was asked for; a damaged snapshot is told and left out; only one snapshot is in memory at a time. The mathematics is
`model/ema.py`'s.
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
from components.reports.image_grid import enlarged, grid
from components.runtime.context import StepContext
from components.serving.register_version import Unevaluated
from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoints import AVERAGES, SNAPSHOTS, CheckpointStore, Committed
from model.canonical import JsonObject
from model.checkpoint import CheckpointState, publish, read
from model.checkpoint_manifest import Checkpoint, CheckpointInvalid
from model.config import ModelSpec, SamplingConfig
from model.ema import PowerProfile, recombine, sigma_rel_of_gamma
from model.generator import Generator
from model.trainer import NUM_SAMPLES

_PREFIX = "ema-"
WIDEST = sigma_rel_of_gamma(0.0)


@dataclass(frozen=True)
class Average:
    """A recombined average: where it is, what it is of, and how good it is."""

    run_key: str
    sigma_rel: float
    step: int
    error: float
    num_snapshots: int
    checkpoint: Checkpoint
    uri: StoreUri
    model: ModelSpec
    dataset_digest: str

    @property
    def group(self) -> str:
        return _PREFIX + PowerProfile(self.sigma_rel).name


@dataclass(frozen=True)
class _Sum:
    tensors: dict[str, Tensor]
    identity: JsonObject
    coefficients: dict[str, float]
    error: float
    num_snapshots: int


class _Damaged(Exception):
    def __init__(self, entry: Committed) -> None:
        super().__init__(str(entry.uri))
        self.entry = entry


def make_average(
    run_key: str,
    sigma_rel: float,
    context: StepContext,
    *,
    step: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Average:
    """Recombine the snapshots of the run `run_key` to the power-function average `sigma_rel` at `step` (default: its newest snapshot).

    Raises:
        BadInput: if the width is impossible, or the run has no snapshots up to that step.
        DataRefused: if none of its snapshots is whole.
    """
    if not 0 < sigma_rel < WIDEST:
        raise BadInput(f"--sigma-rel {sigma_rel:g} must lie between 0 and {WIDEST:.4f}", hint="usual widths are 0.02 to 0.25")
    run = context.root / "runs" / run_key
    snapshots = CheckpointStore(context.store, run, folder=SNAPSHOTS, warn=context.events.note)
    chosen = _one_per_step(_present(snapshots, run, run_key, context), step)
    scratch = context.scratch("averages", run_key)
    target = chosen[0].step
    while chosen:
        try:
            summed = _recombined(snapshots, chosen, target, sigma_rel, scratch / "snapshots", on_progress)
            break
        except _Damaged as damaged:
            context.events.note(f"snapshot {damaged.entry.uri} is damaged and left out: {damaged.__cause__}")
            chosen = [entry for entry in chosen if entry != damaged.entry]
    else:
        raise DataRefused(f"none of the snapshots of run {run_key} up to step {target} is whole")
    name = PowerProfile(sigma_rel).name
    facts = {"identity": summed.identity, "sigma_rel": sigma_rel, "error": summed.error, "coefficients": summed.coefficients}
    checkpoint = publish(CheckpointState(target, {_PREFIX + name: summed.tensors}, facts), scratch / name)
    uri = CheckpointStore(context.store, run, folder=AVERAGES).upload(checkpoint, name)
    return Average(
        run_key=run_key,
        sigma_rel=sigma_rel,
        step=target,
        error=summed.error,
        num_snapshots=summed.num_snapshots,
        checkpoint=checkpoint,
        uri=uri,
        model=ModelSpec.from_identity(summed.identity),
        dataset_digest=str(summed.identity["dataset_digest"]),
    )


def picture_of(average: Average, sampling: SamplingConfig) -> np.ndarray:
    """Draw the fixed samples that every run shows, as one grid (uint8, h x w x 3)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = load_file(average.checkpoint.directory / f"{average.group}.safetensors")
    generator = Generator.from_spec(weights, average.model, device=device)
    images = generator.draw(sampling, range(NUM_SAMPLES), pass_images=NUM_SAMPLES)
    return grid([enlarged(tile) for tile in images.permute(0, 2, 3, 1).numpy()])


def as_version(average: Average, sampling: SamplingConfig, licence: str) -> Unevaluated:
    """Return the average as what a model version is made from."""
    name = PowerProfile(average.sigma_rel).name
    return Unevaluated(
        checkpoint=average.checkpoint,
        group=average.group,
        uri=average.uri,
        run_key=average.run_key,
        model=average.model,
        sampling=sampling,
        licence=licence,
        card=(
            f"Average of run `{average.run_key}` with sigma_rel {name}, ending at step {average.step}, recombined from "
            f"{average.num_snapshots} snapshots; its profile is matched to {average.error:.2%}.\n\n"
            "Not evaluated by the pipeline: promoting it needs `--force`.\n"
        ),
        tags={
            "source": "recombined",
            "ema.sigma_rel": name,
            "checkpoint.step": str(average.step),
            "dataset.digest": average.dataset_digest,
        },
    )


def _present(snapshots: CheckpointStore, run: StoreUri, run_key: str, context: StepContext) -> list[Committed]:
    if found := snapshots.committed():
        return found
    if context.store.list(run):
        raise BadInput(
            f"run {run_key} has stored no averages to recombine",
            hint="train with training.ema_snapshot_every_steps: it can be set when a run is resumed, too",
        )
    keys = sorted({item.uri.relative_to(context.root / "runs").split("/")[0] for item in context.store.list(context.root / "runs")})
    raise BadInput(f"there is no run {run_key!r}", hint=f"runs here: {', '.join(keys) or 'none yet'}")


def _one_per_step(found: list[Committed], step: int | None) -> list[Committed]:
    """Return one snapshot of each step up to `step`, newest first; attempts at the same step stored the same average."""
    kept = {entry.step: entry for entry in reversed(found) if step is None or entry.step <= step}
    if not kept:
        raise BadInput(f"--step {step} is before the first snapshot", hint=f"the first is of step {found[-1].step}")
    if step is not None and step not in kept:
        near = min(found, key=lambda entry: abs(entry.step - step))
        raise BadInput(f"there is no snapshot of step {step}", hint=f"the nearest is of step {near.step}")
    return [kept[at] for at in sorted(kept, reverse=True)]


def _recombined(
    snapshots: CheckpointStore,
    chosen: list[Committed],
    step: int,
    sigma_rel: float,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> _Sum:
    """Add up the snapshots in float64, one at a time."""
    total: dict[str, Tensor] = {}
    newest = _fetched(snapshots, chosen[0], folder)
    widths = sorted(newest.tensors)
    pairs = [(entry.step, float(group.removeprefix(_PREFIX))) for entry in chosen for group in widths]
    plan = recombine(pairs, step, sigma_rel)
    coefficients = iter(plan.coefficients)
    for number, entry in enumerate(chosen):
        state = newest if number == 0 else _fetched(snapshots, entry, folder)
        if sorted(state.tensors) != widths or state.facts["identity"] != newest.facts["identity"]:
            raise _Damaged(entry) from ValueError("it holds other averages, or is of another run")
        for group in widths:
            coefficient = next(coefficients)
            for name, tensor in state.tensors[group].items():
                total.setdefault(name, torch.zeros_like(tensor, dtype=torch.float64)).add_(tensor, alpha=coefficient)
        on_progress(number + 1, len(chosen))
    shares = {f"{at}/{width:g}": coefficient for (at, width), coefficient in zip(pairs, plan.coefficients, strict=True)}
    tensors = {name: tensor.float() for name, tensor in total.items()}
    return _Sum(tensors, newest.facts["identity"], shares, plan.error, len(chosen))


def _fetched(snapshots: CheckpointStore, entry: Committed, folder: Path) -> CheckpointState:
    try:
        return read(snapshots.fetch(entry.uri, folder).directory)
    except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
        raise _Damaged(entry) from problem
    finally:
        shutil.rmtree(folder, ignore_errors=True)
