"""What belongs to a finished training besides its last checkpoint: EMA snapshots in object storage, and its run in MLflow.

Promises: snapshots that are still on local disk are uploaded; one that is missing or incomplete is copied from the checkpoint of its step,
which holds the same averages, or trained again if that costs no more than a kill may, one interval between checkpoints; a run that MLflow
lost gets its description, its metrics and its status again; what killed attempts left incomplete is removed. Nothing here fails a training
that is finished.
"""

from collections.abc import Callable
from dataclasses import dataclass

from components.errors import Failure
from components.reports.listing import list_steps
from components.runtime.context import StepContext
from components.stores.checkpoints import CheckpointStore
from components.system.locks import lock_or_fail
from components.train.checkpointing.finished import Finished
from components.train.checkpointing.snapshot_queue import SnapshotQueue, copy_snapshot
from components.train.leftovers import remove_leftovers
from components.train.spec import TrainSpec
from model.checkpoint_manifest import CheckpointInvalid, remove_unpublished


@dataclass(frozen=True)
class FinishedRun:
    """A finished training; `train_to` trains it again up to a step, and is None if that needs other nodes."""

    spec: TrainSpec
    finished: Finished
    train_to: Callable[[int], None] | None

    @property
    def key(self) -> str:
        return self.spec.run_key


def repair_finished(run: FinishedRun, context: StepContext) -> None:
    """Make again what a finished training has lost."""
    for repair in (_remove_leftovers, _repair_snapshots, _repair_reporting):
        try:
            repair(run, context)
        except Exception as error:  # the checkpoint is there: what is shown of it, and what can be made from it, may come later
            context.events.note(f"run {run.key} is finished, but not everything of it could be restored: {Failure.of(error).message}")


def _remove_leftovers(run: FinishedRun, context: StepContext) -> None:
    """Remove what killed attempts left incomplete: the attempt that would have done it is never made."""
    folder, layout = context.run_folder(run.key), context.layout.run(run.key)
    with lock_or_fail(folder / "writer.lock", f"training of run {run.key}"):
        for name in ("checkpoints", "snapshots"):
            remove_unpublished(folder / name)
        homes = [CheckpointStore(context.store, home, warn=context.events.note) for home in (layout.checkpoints, layout.snapshots)]
        remove_leftovers(run.spec, homes, context)


def _repair_snapshots(run: FinishedRun, context: StepContext) -> None:
    every, stored = run.spec.training.ema_snapshot_every_steps, context.layout.run(run.key).snapshots
    folder, total = context.run_folder(run.key), run.finished.step
    queue = SnapshotQueue(folder / "snapshots", CheckpointStore(context.store, stored), run.spec.attempt, note=context.events.note)
    if every is None and not queue.pending():
        return
    with lock_or_fail(folder / "writer.lock", f"training of run {run.key}"):
        queue.upload_all()
        missing = set() if every is None else _copy_missing({*range(every, total, every), total}, run.spec, context)
    if not missing:
        return
    if run.train_to is not None and _is_cheap(missing, run, context):
        for step in sorted(missing):
            context.events.note(f"the EMA snapshot of step {step} was missing or incomplete and is trained again")
            run.train_to(step)
        return
    context.events.note(f"run {run.key} lacks the EMA snapshots of steps {list_steps(missing)}: `celebdit ema` combines the others")


def _is_cheap(missing: set[int], run: FinishedRun, context: StepContext) -> bool:
    """Return whether training up to the missing snapshots costs no more than a kill may: one interval between checkpoints."""
    checkpoints = CheckpointStore(context.store, context.layout.run(run.key).checkpoints)
    hours = checkpoints.notes(run.finished.uri).get("device_hours")
    if not isinstance(hours, float):
        return False
    known, steps = sorted(entry.step for entry in checkpoints.list_committed()), 0
    for step in sorted(missing):
        steps += step - max((at for at in known if at < step), default=0)
        known.append(step)
    return hours * steps / run.finished.step <= run.spec.resources.num_ranks * run.spec.training.checkpoint_every_s / 3600


def _copy_missing(steps: set[int], spec: TrainSpec, context: StepContext) -> set[int]:
    """Copy missing or incomplete snapshots of `steps` from checkpoints of the same steps, and return the steps that still lack one."""
    note, run = context.events.note, context.layout.run(spec.run_key)
    checkpoints = CheckpointStore(context.store, run.checkpoints, warn=note)
    snapshots = CheckpointStore(context.store, run.snapshots, warn=note)
    missing = steps - snapshots.complete_steps()
    for entry in checkpoints.list_committed() if missing else ():
        if entry.step not in missing:
            continue
        try:
            copy_snapshot(entry.uri, checkpoints, snapshots, spec.training, spec.attempt, context.run_folder(spec.run_key) / "restored")
        except CheckpointInvalid as problem:
            note(f"the EMA snapshot of step {entry.step} cannot be copied from {entry.uri}: {problem}")
            continue
        missing.discard(entry.step)
        note(f"the EMA snapshot of step {entry.step} was missing or incomplete and was copied from the checkpoint of that step")
    return missing


def _repair_reporting(run: FinishedRun, context: StepContext) -> None:
    """Describe the training in MLflow again, with its metrics, if its run there was deleted or did not end as finished."""
    # Importing MLflow takes seconds, and everything else of a finished training needs none.
    from components.train.reporting.sync import sync  # noqa: PLC0415

    key, reported = run.key, context.tracking.training_run(run.key)
    if reported is None or reported.info.status != "FINISHED":
        count = sync(key, context, spec=run.spec)
        context.events.note(f"MLflow had no finished run of training {key}: it was described again, with {count} metrics, images and files")
