"""One rank of a training: `torchrun ... -m components.train.worker SPEC`, on one machine or many.

Promises: every rank continues from the same checkpoint, the newest whole one in object storage, found without help; rank 0 alone speaks to
MLflow and object storage while training; an error that a person can do something about says what. How many ranks there are and where is
torchrun's business; the loop is `model/trainer.py`'s.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from components.errors import CelebditError, DataRefused, Preempted, RankLost, TemporaryFailure
from components.runtime.context import StepContext
from components.runtime.rank import Rank, worker_main
from components.stores.checkpoints import SNAPSHOTS, CheckpointStore, Retention
from components.stores.dataset_cache import fetch_pack
from components.system.locks import claimed
from components.tracking.archive import JournalArchive
from components.tracking.journal import Delivery, Destination, Journal
from components.train.checkpointing.ema_snapshots import SnapshotSink
from components.train.checkpointing.resume import newest_state, restore
from components.train.checkpointing.uploads import UploadingSink
from components.train.out_of_memory import out_of_memory
from components.train.reporting.recorder import JournalRecorder, SilentRecorder
from components.train.spec import TrainSpec
from components.train.system_metrics import Busyness
from model.canonical import JsonObject
from model.distributed import is_lost_rank, joined, wait_for_all
from model.guard import NonFinite
from model.interfaces import Recorder
from model.trainer import Trainer

_PREDECESSOR_S = 60.0
"""How long to wait for the writer of an earlier attempt, whose launcher was killed, to leave."""
_HAND_OVER_S = 60.0
_HAND_OVER_STOPPED_S = 5.0
"""How long MLflow may take for the last of the journal, in a process that was asked to stop: whoever asked kills it soon."""


def body(spec_path: Path, rank: Rank) -> None:
    """Train as one rank until finished, stopped or failed."""
    spec = TrainSpec.load(spec_path)
    context, world = rank.context, rank.world
    device = rank.device(spec.resources.device)
    torch.set_num_threads(spec.resources.threads)
    if spec.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    folder = context.scratch("runs", spec.run_key)
    run_uri = context.root / "runs" / spec.run_key
    writing = claimed(folder / "writer.lock", f"training of run {spec.run_key}", wait_s=_PREDECESSOR_S)
    with writing if world.is_first else nullcontext():
        pack = fetch_pack(spec.dataset, context.store, context.scratch("packs"))
        checkpoints = CheckpointStore(context.store, run_uri, warn=context.events.note)
        archive = JournalArchive(context.store, run_uri, spec.attempt)
        journal = Journal(folder / "journal") if world.is_first else None
        facts: JsonObject = {"identity": spec.identity(spec.dataset.digest)}
        sink = UploadingSink(
            folder / "checkpoints",
            checkpoints,
            attempt=spec.attempt,
            retention=Retention(
                newest=spec.training.checkpoints_to_keep,
                best=spec.training.checkpoints_best,
                every_steps=spec.training.checkpoint_keep_every_steps,
            ),
            facts=facts,
            note=context.events.note,
            after_upload=(lambda: archive.save(journal)) if journal is not None else lambda: None,
        )
        snapshots = SnapshotSink(
            folder / "snapshots",
            CheckpointStore(context.store, run_uri, folder=SNAPSHOTS, warn=context.events.note),
            attempt=spec.attempt,
            facts=facts,
            note=context.events.note,
        )
        timeout_s = spec.resources.rank_timeout_s
        joining = joined(world, device, timeout_s=timeout_s)
        with joining, _recording(rank, spec, journal, archive) as recorder, _explained(spec, rank, device):
            trainer = Trainer(
                spec,
                pack,
                world=world,
                device=device,
                recorder=recorder,
                sink=sink,
                snapshots=snapshots,
                probe=Busyness(folder, device),
                price_per_device_hour=spec.resources.price_per_device_hour,
                timeout_s=timeout_s,
            )
            _continue(trainer, checkpoints, sink, spec, rank, folder / "restored")
            finished = trainer.run(stop_asked=rank.stop_asked.is_set)
    if not finished:
        raise Preempted(f"training was stopped at step {trainer.step}", hint="run it again: it continues from there")


def _continue(trainer: Trainer, checkpoints: CheckpointStore, sink: UploadingSink, spec: TrainSpec, rank: Rank, folder: Path) -> None:
    """Bring `trainer` to where the run stands."""
    if rank.world.is_first:
        sink.rescue()
    state = newest_state(checkpoints, spec, rank.world, trainer.device, folder)
    if state is None:
        return
    restore(trainer, state)
    if rank.world.is_first:
        rank.context.events.note(f"continuing from step {state.step} of {spec.training.total_steps}")
    wait_for_all(rank.world)
    if rank.world.local_rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _explained(spec: TrainSpec, rank: Rank, device: torch.device) -> Iterator[None]:
    """Turn what can go wrong in training into errors that say what to do."""
    try:
        yield
    except CelebditError:
        raise
    except NonFinite as error:
        raise DataRefused(
            str(error),
            hint="the last checkpoint is kept: lower optimizer.lr_peak, raise optimizer.warmup_steps, or look at the named images",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        raise TemporaryFailure(
            f"the disk is full: {error.filename or rank.context.settings.work_dir}",
            hint="make room or set CELEBDIT_WORK_DIR, then run it again: it continues from the newest checkpoint",
        ) from error
    except RuntimeError as error:
        if is_lost_rank(error):
            raise RankLost(
                f"another rank is gone or did not answer for {spec.resources.rank_timeout_s:g} s",
                hint="run it again: it continues from the newest checkpoint. A slow machine may need a larger resources.rank_timeout_s",
            ) from error
        advice = out_of_memory(error, spec, rank.world, device)
        if advice is None:
            raise
        raise advice from error


@contextmanager
def _recording(rank: Rank, spec: TrainSpec, journal: Journal | None, archive: JournalArchive) -> Iterator[Recorder]:
    """Give rank 0 its journal, delivered to MLflow in the background, the others silence."""
    if journal is None:
        yield SilentRecorder()
        return
    # Importing MLflow takes seconds, and no other rank speaks to it.
    from components.train.reporting.destination import MlflowDestination  # noqa: PLC0415

    context = rank.context

    def connect() -> Destination:
        destination = MlflowDestination(context.settings, spec.run_key)
        archive.replay(destination)
        return destination

    delivery = Delivery(
        journal,
        connect,
        on_trouble=lambda error: context.events.note(f"MLflow cannot be reached, training goes on and will tell it later: {error}"),
    )
    try:
        yield JournalRecorder(journal, context.events.progress)
    finally:
        patience_s = _HAND_OVER_STOPPED_S if rank.stop_asked.is_set() else _HAND_OVER_S
        _hand_over(delivery, journal, archive, context, spec, within_s=patience_s)


def _hand_over(
    delivery: Delivery, journal: Journal, archive: JournalArchive, context: StepContext, spec: TrainSpec, *, within_s: float
) -> None:
    """Deliver the rest of the journal, or leave it where any machine can deliver it from."""
    try:
        if delivery.close(within_s=within_s):
            archive.discard()
            return
        archive.save(journal)
        context.events.note(f"MLflow has not received everything yet: run `celebdit sync {spec.run_key}` when it is back")
    except CelebditError as away:
        context.events.note(
            f"{away.message}; what MLflow missed is in {journal.folder}, for `celebdit sync {spec.run_key}` on this machine"
        )


if __name__ == "__main__":
    worker_main("train", body)
