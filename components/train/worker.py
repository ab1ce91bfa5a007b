"""One rank of a training: `torchrun ... -m components.train.worker SPEC.json`.

Promises: every rank continues from the same checkpoint, the newest whole one in object storage, found without help; rank 0 alone speaks to
MLflow and object storage while training. How many ranks there are and where is torchrun's business; the loop is `model/trainer.py`'s.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from components.checkpoints import CheckpointStore
from components.context import StepContext
from components.errors import BadInput, DataRefused, Preempted
from components.journal import Delivery, Journal
from components.packs import fetch_pack
from components.storage import StoreUri
from components.train.destination import MlflowDestination
from components.train.recorder import JournalRecorder, SilentRecorder
from components.train.sink import UploadingSink
from components.train.spec import TrainOutcome, TrainSpec, differences, identity
from components.worker import Rank, worker_main
from model.checkpoint import CheckpointInvalid, CheckpointState, read
from model.distributed import World, joined, text_from_first
from model.protocols import Recorder
from model.trainer import NonFinite, StateMismatch, Trainer

OUTCOME_FILE = "outcome.json"
_GROUP_TIMEOUT_S = 600.0


def body(spec_path: Path, rank: Rank) -> None:
    """Train as one rank until finished, stopped or failed."""
    spec = TrainSpec.load(spec_path)
    context, world = rank.context, rank.world
    device = rank.device(spec.resources.device)
    torch.set_num_threads(spec.resources.threads)
    if spec.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    pack = fetch_pack(spec.dataset, context.store, context.scratch("packs"))
    run_uri = context.root / "runs" / spec.run_key
    checkpoints = CheckpointStore(context.store, run_uri, warn=context.events.note)
    wanted = identity(spec.dataset.digest, spec.network, spec.diffusion, spec.optimizer, spec.training)
    sink = UploadingSink(
        spec_path.parent / "checkpoints",
        checkpoints,
        attempt=spec.attempt,
        keep=spec.training.checkpoints_to_keep,
        facts={"identity": wanted},
        note=context.events.note,
    )
    with joined(world, device, timeout_s=_GROUP_TIMEOUT_S), _recording(context, spec, world, spec_path.parent) as recorder:
        trainer = Trainer(spec.recipe, pack, world=world, device=device, recorder=recorder, sink=sink)
        state = _newest_state(checkpoints, spec, wanted, world, device, context)
        if state is not None:
            _restore(trainer, state)
            if world.is_first:
                context.events.note(f"continuing from step {state.step} of {spec.training.total_steps}")
        try:
            finished = trainer.run(stop_asked=rank.stop_asked.is_set)
        except NonFinite as error:
            raise DataRefused(
                str(error),
                hint="the last checkpoint is kept: lower optimizer.lr_peak, raise optimizer.warmup_steps, or look at the named images",
            ) from error
    if world.is_first and sink.newest is not None:
        checkpoint, uri = sink.newest
        TrainOutcome(uri=str(uri), digest=checkpoint.digest, step=checkpoint.step, finished=finished).dump(spec_path.parent / OUTCOME_FILE)
    if not finished:
        raise Preempted(f"training was stopped at step {trainer.step}", hint="run it again: it continues from there")


@contextmanager
def _recording(context: StepContext, spec: TrainSpec, world: World, folder: Path) -> Iterator[Recorder]:
    """Give rank 0 a journal that is delivered to MLflow in the background, the others silence."""
    if not world.is_first:
        yield SilentRecorder()
        return
    journal = Journal(folder / "journal")
    delivery = Delivery(
        journal,
        lambda: MlflowDestination(context.settings, spec.run_key),
        on_trouble=lambda error: context.events.note(f"MLflow cannot be reached, training goes on and will tell it later: {error}"),
    )
    try:
        yield JournalRecorder(journal, context.events.progress)
    finally:
        if not delivery.close():
            context.events.note(f"MLflow has not received everything yet: run `celebdit sync {spec.run_key}` when it is back")


def _newest_state(
    checkpoints: CheckpointStore, spec: TrainSpec, wanted: dict[str, object], world: World, device: torch.device, context: StepContext
) -> CheckpointState | None:
    """Return the state to continue from, the same on every rank, or None at the very beginning."""
    folder = context.scratch("runs", spec.run_key, "restored")
    chosen = ""
    if world.is_first:
        newest = checkpoints.newest(folder, at_most=spec.training.total_steps)
        chosen = "" if newest is None else str(newest[1])
    chosen = text_from_first(chosen, world, device)
    if not chosen:
        return None
    uri = StoreUri.parse(chosen)
    local = folder / uri.key.split("/")[-2]
    if world.local_rank == 0 and not world.is_first:
        checkpoints.fetch(uri, folder)
    text_from_first("fetched", world, device)
    try:
        state = read(local)
    except CheckpointInvalid as error:
        raise DataRefused(f"{local} is damaged: {error}", hint="run it again: it is downloaded anew") from error
    if lines := differences(state.facts["identity"], wanted):
        raise BadInput(f"checkpoint {uri} is of another run: {'; '.join(lines[:10])}", hint="restore the configuration, or start a new run")
    return state


def _restore(trainer: Trainer, state: CheckpointState) -> None:
    try:
        trainer.restore(state)
    except StateMismatch as error:
        raise DataRefused(f"checkpoint of step {state.step} does not fit the network: {error}") from error


if __name__ == "__main__":
    worker_main("train", body)
