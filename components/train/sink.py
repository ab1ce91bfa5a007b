"""Checkpoints on their way out: copied to host memory at once, then published and uploaded in the background.

Promises: at most one checkpoint is in flight; the loop waits only for the copy; a failed upload is reported and does not stop training, the
next checkpoint tries again, and `drain` raises if the newest one did not arrive.
"""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from components.checkpoints import CheckpointStore
from components.errors import CelebditError, DataRefused
from components.storage import StoreUri
from model.checkpoint import Checkpoint, CheckpointState, publish, published


class UploadingSink:
    """Publish to a local folder, upload, and prune both."""

    def __init__(
        self,
        folder: Path,
        checkpoints: CheckpointStore,
        *,
        attempt: str,
        keep: int,
        facts: dict[str, object],
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._checkpoints = checkpoints
        self._attempt = attempt
        self._keep = keep
        self._facts = facts
        self._note = note
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.newest: tuple[Checkpoint, StoreUri] | None = None

    def ready(self) -> bool:
        """Return whether no checkpoint is in flight."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Take a snapshot now and make it durable in the background."""
        state = snapshot()
        whole = CheckpointState(step=state.step, tensors=state.tensors, facts={**state.facts, **self._facts})
        self._thread = threading.Thread(target=self._make_durable, args=(whole,), name="checkpoint")
        self._thread.start()

    def drain(self) -> None:
        """Wait for the checkpoint in flight; raise if it did not arrive."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _make_durable(self, state: CheckpointState) -> None:
        self._error = None
        try:
            checkpoint = publish(state, self._folder)
            uri = self._checkpoints.upload(checkpoint, self._attempt)
            self.newest = (checkpoint, uri)
            self._checkpoints.keep_newest(self._keep)
            for old in published(self._folder)[1:]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            needed = sum(t.numel() * t.element_size() for group in state.tensors.values() for t in group.values())
            self._error = DataRefused(
                f"checkpoint of step {state.step} cannot be written to {self._folder}: {error.strerror or error}",
                hint=f"it needs {needed / 1e6:.0f} MB of disk: free some, or set CELEBDIT_WORK_DIR",
            )
        except Exception as error:
            self._error = error
        if self._error is not None:
            message = self._error.message if isinstance(self._error, CelebditError) else str(self._error)
            self._note(f"checkpoint of step {state.step} is not durable yet: {message}")
