"""Opens the recorder of a rank and, when training ends, delivers what MLflow has not received or archives it.

Promises: training never waits for MLflow; what MLflow missed is in object storage or, if that fails too, on this machine, and a note says
how to upload it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import CelebditError
from components.runtime.context import StepContext
from components.runtime.rank import Rank
from components.stores.measured_speed import SpeedRecorder
from components.tracking.archive import JournalArchive
from components.tracking.delivery import Delivery
from components.tracking.journal import Destination, Journal
from components.train.reporting.failed_reports import describe_failure
from components.train.reporting.recorder import JournalRecorder, SilentRecorder
from components.train.reporting.trainjob_status import TrainJobStatus
from components.train.spec import TrainSpec
from model.interfaces import Recorder

_FLUSH_TIMEOUT_S = 60.0
_FLUSH_TIMEOUT_STOPPED_S = 5.0
"""How long the last delivery to MLflow may take in a process that was asked to stop and will be killed soon."""


@contextmanager
def open_recorder(
    rank: Rank, spec: TrainSpec, journal: Journal | None, archive: JournalArchive, speeds: SpeedRecorder
) -> Iterator[Recorder]:
    """Yield a recorder: rank 0 writes a journal that is delivered to MLflow in the background, the others record nothing."""
    if journal is None:
        yield SilentRecorder()
        return
    # Importing MLflow takes seconds, and no other rank uses it.
    from components.train.reporting.destination import MlflowDestination  # noqa: PLC0415

    context = rank.context

    def connect() -> Destination:
        destination = MlflowDestination(context.settings, spec.run_key)
        journal.set_receiver(destination.run_id)
        archive.replay(destination)
        return destination

    delivery = Delivery(
        journal,
        connect,
        on_outage=lambda error: context.events.note(describe_failure(error, spec.run_key)),
    )
    training = spec.training
    status = TrainJobStatus.from_environment(total_steps=training.total_steps, batch_images=training.batch_images, note=context.events.note)
    try:
        yield JournalRecorder(journal, context.events.progress, speeds.add, *([] if status is None else [status.report]))
    finally:
        if status is not None:
            status.close()
        timeout_s = _FLUSH_TIMEOUT_STOPPED_S if rank.stop_requested.is_set() else _FLUSH_TIMEOUT_S
        _flush_journal(delivery, journal, archive, context, spec, within_s=timeout_s)


def _flush_journal(
    delivery: Delivery, journal: Journal, archive: JournalArchive, context: StepContext, spec: TrainSpec, *, within_s: float
) -> None:
    """Deliver the rest of the journal, or archive it where any machine can deliver it from."""
    try:
        if delivery.close(within_s=within_s):
            archive.discard()
            return
        archive.save(journal)
        context.events.note(f"MLflow has not received all metrics: run `celebdit sync {spec.run_key}` when it accepts them")
    except CelebditError as error:
        context.events.note(
            f"{error.message}; MLflow has not received the metrics in {journal.folder}: run `celebdit sync {spec.run_key}` on this machine"
        )
