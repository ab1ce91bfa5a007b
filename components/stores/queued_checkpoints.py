"""Checkpoints on this machine's disk that could not be uploaded, with the notes that are stored beside them."""

import json
from collections.abc import Callable
from pathlib import Path

from components.stores.checkpoint_names import rescued_name
from components.stores.checkpoints import CheckpointStore
from model.canonical import JsonObject
from model.checkpoint_manifest import newest_valid


def rescue(folder: Path, checkpoints: CheckpointStore, *, attempt: str, note: Callable[[str], None]) -> None:
    """Upload the newest valid checkpoint in `folder` if object storage has none as new, because an earlier attempt could not.

    It gets a name of its own: `attempt` may store the same step once more, after a score that was due, and keys are written once. That name
    sorts before those of all attempts, because what `attempt` stores of the step is newer.
    """
    local = newest_valid(folder)
    if local is None:
        return
    committed = checkpoints.list_committed()
    if not committed or committed[0].step < local.step:
        checkpoints.upload(local, rescued_name(attempt), notes=_read_notes(folder, local.step))
        note(f"the checkpoint of step {local.step} was only on local disk and is now uploaded")


def notes_path(folder: Path, step: int) -> Path:
    """Return the file for the notes of a checkpoint in `folder`."""
    return folder / f"step-{step:09d}.notes.json"


def _read_notes(folder: Path, step: int) -> JsonObject:
    try:
        return dict(json.loads(notes_path(folder, step).read_bytes()))
    except (OSError, ValueError):
        return {}
