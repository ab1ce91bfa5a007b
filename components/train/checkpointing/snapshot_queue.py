"""EMA snapshots on local disk that are waiting to be uploaded, and their copies from checkpoints.

Promises: snapshots are uploaded in the order of their steps, each is deleted locally only after its commit is in object storage, and one
that is damaged on disk is set aside. Needs no PyTorch, so that launchers can use it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from components.storage import DigestMismatch, ObjectMissing, StoreUri
from components.stores.checkpoints import CheckpointStore
from model.canonical import canonical_json
from model.checkpoint_manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointInvalid,
    UnsupportedCheckpointFormat,
    directory_name,
    encode_manifest,
    file_entry,
    list_checkpoints,
    verify,
)
from model.config import TrainingConfig
from model.ema import EmaName


class SnapshotQueue:
    """The snapshots below `folder`, uploaded to `snapshots` under the name `attempt`."""

    def __init__(self, folder: Path, snapshots: CheckpointStore, attempt: str, *, note: Callable[[str], None]) -> None:
        self.folder = folder
        self._snapshots = snapshots
        self._attempt = attempt
        self._note = note

    def pending(self) -> list[Path]:
        """Return the snapshots that wait, oldest first."""
        return list_checkpoints(self.folder)[::-1]

    def holds(self, step: int) -> bool:
        """Return whether an intact snapshot of `step` waits."""
        try:
            verify(self.folder / directory_name(step))
        except (CheckpointInvalid, UnsupportedCheckpointFormat, OSError):
            return False
        return True

    def upload_all(self) -> None:
        """Upload until nothing waits.

        Raises:
            CelebditError: if an upload fails; that snapshot and those after it stay on disk.
        """
        while pending := self.pending():
            for directory in pending:
                self._upload(directory)

    def _upload(self, directory: Path) -> None:
        try:
            snapshot = verify(directory)
        except (CheckpointInvalid, UnsupportedCheckpointFormat) as problem:
            aside = directory.with_name(f".damaged-{directory.name}")
            shutil.rmtree(aside, ignore_errors=True)
            directory.rename(aside)
            self._note(f"the EMA snapshot in {directory} is damaged and was set aside as {aside.name}: {problem}")
            return
        stored = [entry.uri for entry in self._snapshots.list_committed() if entry.step == snapshot.step]
        if snapshot.digest not in map(self._snapshots.digest, stored):
            self._snapshots.upload(snapshot, self._attempt)
        shutil.rmtree(directory)


def copy_snapshot(
    checkpoint: StoreUri, checkpoints: CheckpointStore, snapshots: CheckpointStore, training: TrainingConfig, attempt: str, folder: Path
) -> None:
    """Store the power-function averages of a checkpoint as the snapshot of its step; it has the bytes that training stored.

    Raises:
        CheckpointInvalid: if the checkpoint is corrupt or lacks an average.
    """
    files = [EmaName.of_width(width).file for width in training.ema_sigma_rel]
    try:
        fetched = checkpoints.fetch(checkpoint, folder / "checkpoint", files=[*files, STATE_FILE])
        identity = checkpoints.state(checkpoint)["identity"]
    except (ObjectMissing, DigestMismatch, KeyError) as problem:
        raise CheckpointInvalid(str(problem)) from problem
    target = folder / "snapshot" / directory_name(fetched.step)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in files:
        (fetched.directory / name).rename(target / name)
    (target / STATE_FILE).write_bytes(canonical_json({"step": fetched.step, "identity": identity}))
    entries = {path.name: file_entry(path) for path in sorted(target.iterdir())}
    (target / MANIFEST_FILE).write_bytes(encode_manifest(fetched.step, entries))
    snapshots.upload(verify(target), attempt)
    shutil.rmtree(folder, ignore_errors=True)
