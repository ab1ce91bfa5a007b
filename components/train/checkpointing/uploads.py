"""Uploads checkpoints: copied to host memory at once, then published and uploaded in the background.

Promises: at most one checkpoint is uploaded at a time; the loop waits only for the copy; a failed upload is reported and does not stop
training, the next checkpoint tries again, and `drain` raises if the newest one did not arrive. A checkpoint that could not be uploaded
stays on local disk, where the next attempt finds it; of several the newest two do, so that an outage of hours does not fill the disk.
"""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from components.errors import Failure, TemporaryFailure
from components.storage.answers import Answer
from components.storage.faults import StorageRefused
from components.stores.checkpoints import CheckpointStore, Retention
from components.stores.queued_checkpoints import notes_path, rescue
from components.system.disk import free_bytes, has_no_files
from model.canonical import JsonObject, canonical_json
from model.checkpoint import CheckpointState, publish
from model.checkpoint_manifest import Checkpoint, directory_name, list_checkpoints, remove_unpublished

_KEPT_IN_OUTAGES = 2
"""How many checkpoints stay on local disk that could not be uploaded: one more than is needed, in case it is damaged."""


class UploadingSink:
    """Publish to a local folder, upload, and prune both."""

    def __init__(
        self,
        folder: Path,
        checkpoints: CheckpointStore,
        *,
        attempt: str,
        retention: Retention,
        facts: JsonObject,
        note: Callable[[str], None],
        after_upload: Callable[[], object] = lambda: None,
    ) -> None:
        """Write below `folder`; `facts` are stored with every checkpoint, `after_upload` is called after each upload and may fail."""
        self._folder = folder
        self._checkpoints = checkpoints
        self._attempt = attempt
        self._retention = retention
        self._facts = facts
        self._note = note
        self._after_upload = after_upload
        self._thread: threading.Thread | None = None
        self._on_disk = threading.Event()
        self._on_disk.set()
        self._error: Exception | None = None
        self._refusals: set[tuple[Answer, str | None]] = set()

    def ready(self) -> bool:
        """Return whether no checkpoint is in flight."""
        return self._thread is None or not self._thread.is_alive()

    def submit(self, snapshot: Callable[[], CheckpointState]) -> None:
        """Take a snapshot now and make it durable in the background.

        If one is still in flight, this one goes to disk at once and is uploaded after it: the last state before a stop must not wait for
        an unavailable network.
        """
        self._on_disk.wait()  # the snapshot before may live in the same host buffers
        self._on_disk.clear()
        state = snapshot()
        checkpoint = replace(state, facts={**state.facts, **self._facts})
        self._thread = threading.Thread(target=self._make_durable, args=(checkpoint, self._thread), name="checkpoint")
        self._thread.start()

    def drain(self) -> None:
        """Wait for the checkpoint in flight; raise if it did not arrive."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def rescue(self) -> None:
        """Remove what a killed attempt was writing, and upload the newest checkpoint on local disk that it could not; see `rescue`."""
        remove_unpublished(self._folder)
        rescue(self._folder, self._checkpoints, attempt=self._attempt, note=self._note)

    def _make_durable(self, state: CheckpointState, before: threading.Thread | None) -> None:
        try:
            try:
                checkpoint = self._publish(state)
            finally:
                self._on_disk.set()
                if before is not None:
                    before.join()
            self._checkpoints.upload(checkpoint, self._attempt, notes=state.notes)
            self._error = None
        except Exception as error:  # reported now, raised by `drain`; training continues
            self._error = error
            self._note(f"checkpoint of step {state.step} is not durable yet: {Failure.of(error).message}")
            self._prune_local(state.step, keep=_KEPT_IN_OUTAGES)
            return
        for clean_up in (lambda: self._prune_local(state.step, keep=1), self._prune_stored, self._after_upload):
            try:
                clean_up()
            except Exception as error:  # the checkpoint is durable, and the next one cleans up again
                self._note_once(f"after the checkpoint of step {state.step}: {Failure.of(error).message}", error)

    def _note_once(self, text: str, error: Exception) -> None:
        """Note a failure after a checkpoint; a refusal of the store only once, because it is the same after each."""
        if not isinstance(error, StorageRefused):
            self._note(text)
        elif (refusal := (error.answer, error.detail)) not in self._refusals:
            self._refusals.add(refusal)
            self._note(f"{text}; {error.hint}. It is tried after each checkpoint and not noted again")

    def _publish(self, state: CheckpointState) -> Checkpoint:
        try:
            checkpoint = publish(state, self._folder)
            notes_path(self._folder, state.step).write_bytes(canonical_json(state.notes))
        except (OSError, SafetensorError) as error:
            needed = sum(t.numel() * t.element_size() for group in state.tensors.values() for t in group.values())
            free = f"{free_bytes(self._folder) / 1e6:.1f} MB{', but no inodes,' if has_no_files(self._folder) else ''} are free"
            raise TemporaryFailure(
                f"checkpoint of step {state.step} cannot be written to {self._folder}: {getattr(error, 'strerror', None) or error}",
                hint=f"it needs {needed / 1e6:.1f} MB of disk, {free}: free some, or set CELEBDIT_WORK_DIR",
            ) from error
        return checkpoint

    def _prune_stored(self) -> None:
        self._checkpoints.retain(self._retention, attempt=self._attempt)

    def _prune_local(self, before_step: int, *, keep: int) -> None:
        """Delete all but the newest `keep` up to `before_step` on local disk.

        Later ones wait for their upload, or are damaged ones of an earlier attempt: they stay, and keep no other from staying.
        """
        newest = [path for path in list_checkpoints(self._folder) if path.name <= directory_name(before_step)]
        for old in newest[keep:]:
            shutil.rmtree(old, ignore_errors=True)
        all_notes = list(self._folder.glob("*.notes.json"))
        kept = {path.name for path in list_checkpoints(self._folder)}
        for notes in all_notes:
            if notes.name.removesuffix(".notes.json") not in kept:
                notes.unlink(missing_ok=True)
