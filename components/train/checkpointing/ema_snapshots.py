"""Uploads EMA snapshots: copied to host memory at their step, then uploaded in the background; all are kept.

Promises: snapshots are uploaded in order; a failed upload is reported and costs that snapshot, never the training, because
an EMA can be recombined from the others. Checkpoints, which training continues from, go through
`components/train/checkpointing/uploads.py`.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from components.errors import Failure
from components.stores.checkpoints import CheckpointStore
from model.canonical import JsonObject
from model.checkpoint import CheckpointState, publish


class SnapshotSink:
    """Publish to a local folder, upload, and delete the local copy."""

    def __init__(self, folder: Path, snapshots: CheckpointStore, *, attempt: str, facts: JsonObject, note: Callable[[str], None]) -> None:
        self._folder = folder
        self._snapshots = snapshots
        self._attempt = attempt
        self._facts = facts
        self._note = note
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Return whether no snapshot is in flight."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Take a snapshot now and upload it in the background; waits for one that is still in flight, so that memory holds two."""
        state = snapshot()
        self.drain()
        self._thread = threading.Thread(target=self._upload, args=(state,), name="snapshot")
        self._thread.start()

    def drain(self) -> None:
        """Wait for the snapshot in flight."""
        if self._thread is not None:
            self._thread.join()

    def _upload(self, state: CheckpointState) -> None:
        try:
            published = publish(CheckpointState(state.step, state.tensors, {**state.facts, **self._facts}), self._folder)
            self._snapshots.upload(published, self._attempt)
        except Exception as error:  # reported, not raised: see the module docstring
            self._note(f"the EMA snapshot of step {state.step} was not stored: {Failure.of(error).message}")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
