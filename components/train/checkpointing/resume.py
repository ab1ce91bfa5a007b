"""Resume a training from the newest valid checkpoint in object storage, the same one on every rank.

Promises: every rank of every machine restores the same bytes; a checkpoint of another configuration or dataset is refused and each
different field is named; a corrupt one is quarantined; training never restarts from zero by itself.
"""

from dataclasses import replace
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.storage import StoreUri
from components.stores.checkpoints import CheckpointStore
from components.train.spec import TrainSpec, differences
from model.checkpoint import CheckpointState, read
from model.checkpoint_manifest import CheckpointInvalid
from model.distributed import HostGroup, World
from model.state import StateMismatch
from model.trainer import Trainer


def newest_state(checkpoints: CheckpointStore, spec: TrainSpec, world: World, group: HostGroup, folder: Path) -> CheckpointState | None:
    """Return the state to continue from, or None if the run has no checkpoint; a collective operation of `group`.

    The checkpoint is downloaded into `folder` once per machine; meanwhile the other ranks wait, for as long as `group` lets them.

    Raises:
        BadInput: if the checkpoint is of another run; names every field that differs.
        DataRefused: if there are checkpoints, but none is valid.
    """
    chosen = ""
    if world.is_first:
        newest = checkpoints.newest(folder, at_most=spec.training.total_steps)
        chosen = "" if newest is None else str(newest[1])
    chosen = group.broadcast_text(chosen)
    if not chosen:
        return None
    uri = StoreUri.parse(chosen)
    if world.local_rank == 0 and not world.is_first:
        checkpoints.fetch(uri, folder)
    group.wait_for_all_ranks()
    local = folder / uri.key.split("/")[-2]
    try:
        state = read(local)
    except CheckpointInvalid as error:
        raise DataRefused(f"{local} is corrupt: {error}", hint="run it again: the checkpoint is downloaded again") from error
    if lines := differences(state.facts["identity"], spec.identity(spec.dataset.digest)):
        raise BadInput(f"checkpoint {uri} is of another run: {'; '.join(lines[:10])}", hint="restore the configuration, or start a new run")
    return replace(state, notes=checkpoints.notes(uri))


def restore(trainer: Trainer, state: CheckpointState) -> None:
    """Load `state` into `trainer`.

    Raises:
        DataRefused: if it does not fit the network; names the tensor.
    """
    try:
        trainer.restore(state)
    except StateMismatch as error:
        raise DataRefused(f"checkpoint of step {state.step} does not fit the network: {error}") from error
