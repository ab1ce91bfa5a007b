"""Stores EMA snapshots: copied to host memory at their step, written to local disk, then uploaded in the background; all are kept.

Promises: training waits for the copy, and for local disk if the snapshot before is still being written, never for the network; snapshots
that cannot be uploaded stay on local disk and are uploaded in order with the next one, at the end, or by the next attempt; `drain` raises
if one did not arrive. Checkpoints, which training continues from, go through `components/train/checkpointing/uploads.py`.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from components.errors import Failure
from components.reports.plural import plural
from components.stores.checkpoints import CheckpointStore
from components.train.checkpointing.snapshot_queue import SnapshotQueue
from model.canonical import JsonObject
from model.checkpoint import CheckpointState, publish


class SnapshotSink:
    """Publish to a local folder, upload, and delete the local copy."""

    def __init__(self, folder: Path, snapshots: CheckpointStore, *, attempt: str, facts: JsonObject, note: Callable[[str], None]) -> None:
        self._queue = SnapshotQueue(folder, snapshots, attempt, note=note)
        self._facts = facts
        self._note = note
        self._writer: threading.Thread | None = None
        self._uploader: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_out = False

    def ready(self) -> bool:
        """Return whether no snapshot is being written to local disk."""
        return self._writer is None or not self._writer.is_alive()

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Take a snapshot now and store it in the background; waits until the one before is on local disk, so that memory holds two."""
        state = snapshot()
        self.settle()
        self._writer = threading.Thread(target=self._write, args=(state,), name="snapshot")
        self._writer.start()

    def settle(self) -> None:
        """Wait until every snapshot is on local disk or in object storage."""
        if self._writer is not None:
            self._writer.join()

    def rescue(self) -> None:
        """Upload in the background what an earlier attempt left on local disk."""
        if left := self._queue.pending():
            self._note(f"uploading {plural(len(left), 'EMA snapshot')} that an earlier attempt left on local disk")
            self._start_uploader()

    def drain(self) -> None:
        """Wait until everything is in object storage.

        Raises:
            CelebditError: if a snapshot did not arrive; it stays on local disk.
        """
        self.settle()
        with self._lock:
            uploader = self._uploader
        if uploader is not None:
            uploader.join()
        self._queue.upload_all()

    def _write(self, state: CheckpointState) -> None:
        try:
            if not self._queue.holds(state.step):  # an attempt that was killed after it may have written the same one
                publish(CheckpointState(state.step, state.tensors, {**state.facts, **self._facts}), self._queue.folder)
        except Exception as error:  # a full disk, say: an EMA can be recombined from the other snapshots, and training goes on
            self._note(f"the EMA snapshot of step {state.step} was not stored: {Failure.of(error).message}")
            return
        self._start_uploader()

    def _start_uploader(self) -> None:
        with self._lock:
            if self._uploader is None or not self._uploader.is_alive():
                self._uploader = threading.Thread(target=self._upload, name="snapshot-upload", daemon=True)
                self._uploader.start()

    def _upload(self) -> None:
        try:
            self._queue.upload_all()
            self._is_out = False
        except Exception as error:  # they stay on disk: the next snapshot, `drain` or the next attempt tries again
            if not self._is_out:
                self._note(f"EMA snapshots stay on local disk until they can be uploaded: {Failure.of(error).message}")
            self._is_out = True
