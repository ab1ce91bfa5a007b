"""Upload what a training could not: metrics that MLflow lacks, from any machine, and a checkpoint on this one's disk.

Promises: afterwards MLflow has the run's description, each (key, step) exactly once, and the status that object storage shows, also if the
run or its images were deleted there: on the machine that trained, the whole journal is compared with what MLflow has. Repeating it, or
running it when nothing is missing, changes nothing. What an attempt that has ended left incomplete in object storage is removed.
"""

from contextlib import suppress

from components.errors import DataRefused
from components.runtime.context import StepContext
from components.storage import ObjectMissing, StoreUri
from components.stores.checkpoints import CheckpointStore
from components.stores.queued_checkpoints import rescue
from components.system.locks import lock_or_fail
from components.tracking.archive import JournalArchive
from components.tracking.journal import JOURNAL_FILE, Journal
from components.train.leftovers import remove_leftovers
from components.train.reporting.destination import MlflowDestination
from components.train.reporting.reporter import describe_run
from components.train.spec import SPEC_FILE, TrainSpec, newest_spec
from model.canonical import JsonObject
from model.checkpoint_manifest import CheckpointInvalid


def sync(run_key: str, context: StepContext, *, spec: TrainSpec | None = None) -> int:
    """Deliver the missing entries of the training `run_key` and return their number; without `spec`, the newest stored one describes it.

    Raises:
        BadInput: if there is no such training.
        TemporaryFailure: if it is being trained on this machine (training delivers by itself), or MLflow is unavailable.
    """
    run = context.layout.run(run_key)
    spec = spec or newest_spec(run_key, context)
    folder = context.run_folder(run_key)
    with lock_or_fail(folder / "writer.lock", f"training of run {run_key}"):
        checkpoints = CheckpointStore(context.store, run.checkpoints, warn=context.events.note)
        rescue(folder / "checkpoints", checkpoints, attempt=spec.attempt, note=context.events.note)
        _remove_abandoned(spec, checkpoints, context)
        status_before = _status(run_key, context)
        run_id = describe_run(context.tracking, spec)
        destination = MlflowDestination(context.settings, run_key)
        count = JournalArchive(context.store, run.journal, spec.attempt).replay(destination)
        if (folder / "journal" / JOURNAL_FILE).exists():
            journal = Journal(folder / "journal")
            journal.set_receiver(run_id)
            count += journal.deliver_again(destination)
        context.tracking.set_status(run_id, _final_status(spec, context, status_before))
    return count


def _remove_abandoned(spec: TrainSpec, checkpoints: CheckpointStore, context: StepContext) -> None:
    """Remove what ended attempts left incomplete: those before the newest one, and the last one on this machine, whose lock is held.

    An attempt on several nodes leaves its specification on each, and only the first of them holds the lock.
    """
    run, note = context.layout.run(spec.run_key), context.events.note
    ended = None
    with suppress(DataRefused):  # no attempt ran on this machine, or another version wrote its specification
        local = TrainSpec.load(context.run_folder(spec.run_key) / SPEC_FILE)
        ended = local.attempt if local.resources.nodes == 1 else None
    homes = (checkpoints, CheckpointStore(context.store, run.snapshots, warn=note))
    remove_leftovers(spec, homes, context, ended=ended)


def _status(run_key: str, context: StepContext) -> str | None:
    run = context.tracking.training_run(run_key)
    return None if run is None else str(run.info.status)


def _final_status(spec: TrainSpec, context: StepContext, before: str | None) -> str:
    """Return FINISHED if there is a checkpoint of the last step whose score is not due; else `before` if it was final, or KILLED.

    A training that had finished, and whose checkpoints were all deleted since (`celebdit storage delete`), stays FINISHED.
    """
    checkpoints = CheckpointStore(context.store, context.layout.run(spec.run_key).checkpoints)
    committed = checkpoints.list_committed()
    last = [entry.uri for entry in committed if entry.step == spec.training.total_steps]
    if any(not spec.training.is_score_due(spec.training.total_steps, _notes(checkpoints, uri)) for uri in last):
        return "FINISHED"
    if not committed and before == "FINISHED":
        return before
    return before if before in ("FAILED", "KILLED") else "KILLED"


def _notes(checkpoints: CheckpointStore, uri: StoreUri) -> JsonObject:
    with suppress(CheckpointInvalid, ObjectMissing):  # the train step sets a damaged one aside
        return checkpoints.notes(uri)
    return {}
