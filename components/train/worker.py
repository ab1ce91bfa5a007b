"""One rank of a training: `torchrun ... -m components.train.worker SPEC`, on one machine or many.

Promises: every rank continues from the same checkpoint, the newest valid one in object storage; rank 0 alone writes to MLflow and object
storage while training; an error that a user can fix says how. The training loop is in `model/trainer.py`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from components.errors import CelebditError, DataRefused, Preempted, RankLost
from components.manifests import Split
from components.runtime.rank import Rank, worker_main
from components.stores.checkpoints import CheckpointStore, Retention
from components.stores.dataset_cache import fetch_pack
from components.stores.measured_speed import SpeedRecorder
from components.system.disk import require_room
from components.system.locks import lock_or_fail
from components.system.work_folders import WorkFolder
from components.tracking.archive import JournalArchive
from components.tracking.journal import Journal
from components.train.checkpointing.ema_snapshots import SnapshotSink
from components.train.checkpointing.resume import newest_state, restore
from components.train.checkpointing.uploads import UploadingSink
from components.train.leftovers import remove_leftovers
from components.train.out_of_memory import out_of_memory
from components.train.reporting.open_recorder import open_recorder
from components.train.reporting.speed import report_speed
from components.train.scoring import FeatureScorer, open_extractor
from components.train.spec import TrainSpec
from components.train.system_metrics import SystemMetrics
from components.train.teacher_weights import fetch_teacher
from model.canonical import JsonObject
from model.checkpoint_manifest import remove_unpublished
from model.config import TrainingConfig
from model.dataset import Pack
from model.distributed import HostGroup, is_lost_rank, lost_address, process_group
from model.guard import NonFinite
from model.interfaces import Outputs
from model.trainer import Placement, Trainer

IMPORTED_LATER = ("torch._dynamo",)
"""What the first optimiser imports, for the process that forks ranks."""
_PREDECESSOR_TIMEOUT_S = 60.0
"""How long to wait until the writer of an earlier attempt, whose launcher was killed, ends."""
_STORAGE_CALLS_AT_START = 5
"""How many calls to object storage, of a deadline each, a rank may wait for while it starts: the others wait as long for it."""


@dataclass(frozen=True)
class RunStorage:
    """Storage of one rank; only the first rank has a journal."""

    folder: Path
    checkpoints: CheckpointStore
    snapshot_store: CheckpointStore
    sink: UploadingSink
    snapshots: SnapshotSink
    archive: JournalArchive
    journal: Journal | None

    @classmethod
    def open(cls, spec: TrainSpec, rank: Rank, folder: Path) -> Self:
        """Open the storage of the run `spec` with `folder` for local copies."""
        context, attempt, note = rank.context, spec.attempt, rank.context.events.note
        run = context.layout.run(spec.run_key)
        facts: JsonObject = {"identity": spec.identity(spec.dataset.digest)}
        checkpoints = CheckpointStore(context.store, run.checkpoints, warn=note)
        snapshots = CheckpointStore(context.store, run.snapshots, warn=note)
        archive = JournalArchive(context.store, run.journal, attempt)
        journal = Journal(folder / "journal") if rank.world.is_first else None
        sink = UploadingSink(
            folder / "checkpoints",
            checkpoints,
            attempt=attempt,
            retention=_retention(spec.training),
            facts=facts,
            note=note,
            after_upload=(lambda: archive.save(journal)) if journal is not None else lambda: None,
        )
        snapshot_sink = SnapshotSink(folder / "snapshots", snapshots, attempt=attempt, facts=facts, note=note)
        return cls(folder, checkpoints, snapshots, sink, snapshot_sink, archive, journal)


def body(spec_path: Path, rank: Rank) -> None:
    """Train as one rank until finished, stopped or failed."""
    spec = TrainSpec.load(spec_path)
    device = rank.device(spec.resources.device)
    _configure_torch(spec)
    folder = rank.context.run_folder(spec.run_key)
    writing = lock_or_fail(folder / "writer.lock", f"training of run {spec.run_key}", wait_s=_PREDECESSOR_TIMEOUT_S)
    with writing if rank.world.is_first else nullcontext():
        step, finished = _train(spec, rank, device, RunStorage.open(spec, rank, folder))
    if not finished:
        raise Preempted(f"training was stopped at step {step}", hint="run it again: it continues from there")


def _train(spec: TrainSpec, rank: Rank, device: torch.device, storage: RunStorage) -> tuple[int, bool]:
    """Continue the run until its last step or a request to stop; return the step, and whether it is the last one."""
    timeout_s = spec.resources.rank_timeout_s
    with process_group(rank.world, device, timeout_s=timeout_s), _translate_errors(spec, rank, device):
        start_timeout_s = timeout_s + _STORAGE_CALLS_AT_START * rank.context.settings.storage_deadline_s
        group = HostGroup(rank.world, timeout_s=start_timeout_s)
        pack = _fetch_pack(spec, rank, "train")
        held_out = _fetch_pack(spec, rank, "held_out") if _measures_held_out(spec) else None
        teacher = None
        if spec.teacher is not None and spec.distill is not None:
            teacher = fetch_teacher(spec.teacher, spec.distill, rank.context)
        scorer = _open_scorer(spec, pack, rank, device, group)
        speeds = SpeedRecorder()
        with open_recorder(rank, spec, storage.journal, storage.archive, speeds) as recorder:
            placement = Placement(
                rank.world,
                device,
                timeout_s=timeout_s,
                probe=SystemMetrics(storage.folder, device),
                price_per_device_hour=spec.resources.price_per_device_hour,
            )
            outputs = Outputs(recorder, storage.sink, storage.snapshots)
            trainer = Trainer(spec, pack, placement, outputs, held_out=held_out, scorer=scorer, teacher=teacher)
            if rank.world.is_first:
                require_room(storage.folder, "a checkpoint", trainer.checkpoint_bytes)
            _continue(trainer, storage, spec, rank, group)
            try:
                finished = trainer.run(stop_requested=rank.stop_requested.is_set)
                if rank.world.is_first and trainer.step >= spec.training.total_steps:
                    # Also after a stop within the score of the last step: the attempt that makes it trains no step to measure.
                    report_speed(speeds, spec, device, rank.context)
                if not finished:
                    # A rank that ends now ends the job of several nodes, and with it the first rank, which may still upload.
                    group.wait_for_all_ranks()
            finally:
                storage.snapshots.settle()
    return trainer.step, finished


def _open_scorer(spec: TrainSpec, pack: Pack, rank: Rank, device: torch.device, group: HostGroup) -> FeatureScorer | None:
    """Return what scores samples, or None if none are scored. A collective."""
    if spec.features is None or spec.training.score_every_steps is None:
        return None
    extractor = open_extractor(spec.features, rank.context, device)
    group.wait_for_all_ranks()  # the references are a collective whose time limit is shorter than a download may take
    return FeatureScorer.open(extractor, spec.features.extractor, spec.training, pack, world=rank.world, device=device)


def _measures_held_out(spec: TrainSpec) -> bool:
    """Return whether the loss on held-out images is measured; that of a student would say nothing, because its output is a sample."""
    return spec.dataset.num_held_out > 0 and spec.training.held_out_images > 0 and spec.teacher is None


def _fetch_pack(spec: TrainSpec, rank: Rank, split: Split) -> Pack:
    return fetch_pack(spec.dataset, rank.context.store, rank.context.scratch(WorkFolder.PACKS), layout=rank.context.layout, split=split)


def _configure_torch(spec: TrainSpec) -> None:
    torch.set_num_threads(spec.resources.threads)
    # torch's default, said here because the output layer and float32 runs depend on it: products of TF32, sums of float32.
    torch.backends.cudnn.allow_tf32 = True
    if spec.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _retention(training: TrainingConfig) -> Retention:
    return Retention(newest=training.checkpoints_to_keep, best=training.checkpoints_best, every_steps=training.checkpoint_keep_every_steps)


def _continue(trainer: Trainer, storage: RunStorage, spec: TrainSpec, rank: Rank, group: HostGroup) -> None:
    """Restore the newest checkpoint of the run, if there is one, into `trainer`, and wait until every rank has."""
    folder = storage.folder / "restored"
    if rank.world.is_first:
        remove_leftovers(spec, (storage.checkpoints, storage.snapshot_store), rank.context)
        storage.sink.rescue()
        remove_unpublished(storage.folder / "snapshots")
        storage.snapshots.rescue()
    state = newest_state(storage.checkpoints, spec, rank.world, group, folder)
    if state is not None:
        restore(trainer, state)
        if rank.world.is_first:
            rank.context.events.note(f"continuing from step {state.step} of {spec.training.total_steps}")
    group.wait_for_all_ranks()
    if rank.world.local_rank == 0:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _translate_errors(spec: TrainSpec, rank: Rank, device: torch.device) -> Iterator[None]:
    """Translate exceptions of training into errors with a next action."""
    try:
        yield
    except CelebditError:
        raise
    except NonFinite as error:
        raise DataRefused(
            str(error),
            hint="the last checkpoint is kept: lower optimizer.lr_peak, raise optimizer.warmup_steps, or inspect the named images",
        ) from error
    except RuntimeError as error:
        if is_lost_rank(error):
            address = lost_address(error)
            place = f" ({address})" if address else ""
            raise RankLost(
                f"another rank is gone or did not answer for {spec.resources.rank_timeout_s:g} s{place}",
                hint="run it again: it continues from the newest checkpoint. A slow machine may need a larger resources.rank_timeout_s",
            ) from error
        advice = out_of_memory(error, spec, rank.world, device)
        if advice is None:
            raise
        raise advice from error


if __name__ == "__main__":
    worker_main("train", body)
