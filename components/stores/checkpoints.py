"""Checkpoints in object storage: upload, verified download, and retention.

Layout: `step-<n>/<attempt>/` with the files of `model/checkpoint.py`, and `COMMIT.json` last (see `layout.py`). Promises: a
checkpoint without its commit does not exist; a corrupt one is reported, quarantined (marked, and kept) and never loaded; if checkpoints of
several steps were committed but all are corrupt, that is an error and not a fresh start. Keys are written once.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.errors import BadInput, DataRefused, shorten
from components.reports.listing import list_some
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri
from components.stores.abandoned_uploads import AbandonedUploads
from components.stores.checkpoint_commit import read_commit
from components.stores.checkpoint_names import (
    COMMIT_FILE,
    QUARANTINE_FILE,
    SCORE_PREFIX,
    CommittedCheckpoint,
    abandoned_folders,
    checkpoint_folder,
    committed_checkpoints,
    step_of,
)
from components.stores.checkpoint_scores import read_ranking
from components.stores.kept_versions import VersionsReport
from components.stores.retention import Retention, steps_to_keep
from model.canonical import JsonObject, canonical_json
from model.checkpoint_manifest import (
    MANIFEST_FILE,
    STATE_FILE,
    Checkpoint,
    CheckpointInvalid,
    FileEntry,
    UnsupportedCheckpointFormat,
    decode_manifest,
    directory_name,
    verify,
)

__all__ = ["CheckpointStore", "FileNotInCheckpoint", "OtherFormat", "Retention"]

_PARALLEL_FILES = 4


class FileNotInCheckpoint(CheckpointInvalid):
    """A file was asked for that a checkpoint does not have by its manifest."""


class OtherFormat(BadInput, UnsupportedCheckpointFormat):
    """A stored checkpoint was written by another version. It is not changed."""


class CheckpointStore:
    """The checkpoints below `home`, one prefix of a run's layout: its checkpoints, snapshots or averages."""

    def __init__(self, store: ObjectStore, home: StoreUri, *, warn: Callable[[str], None] = lambda text: None) -> None:
        self._store = store
        self._home = home
        self._warn = warn
        self._versions = VersionsReport(store, home.bucket, warn)
        self._abandoned_uploads = AbandonedUploads(store, home)
        self._first_abandoned: set[StoreUri] | None = None

    def upload(self, checkpoint: Checkpoint, attempt: str, *, notes: Mapping[str, object] | None = None) -> StoreUri:
        """Upload a local checkpoint and return its location; `notes` are stored with its commit. Repeating it is harmless."""
        target = self._home / directory_name(checkpoint.step) / attempt
        for name, entry in checkpoint.files.items():
            sha256 = self._store.put_file(target / name, checkpoint.directory / name)
            if sha256 != entry.sha256:
                raise DigestMismatch(f"{checkpoint.directory / name} changed on disk while it was uploaded")
        self._store.put_file(target / MANIFEST_FILE, checkpoint.directory / MANIFEST_FILE)
        self._put_removed(checkpoint, target)
        commit = {"digest": checkpoint.digest, "step": checkpoint.step, "notes": dict(notes or {})}
        self._store.put_bytes(target / COMMIT_FILE, canonical_json(commit))
        return target

    def _put_removed(self, checkpoint: Checkpoint, target: StoreUri) -> None:
        """Upload again what a later attempt removed, which took this one for ended; see `remove_abandoned`."""
        for name in (*checkpoint.files, MANIFEST_FILE):
            if not self._store.exists(target / name):
                self._store.put_file(target / name, checkpoint.directory / name)

    def list_committed(self) -> list[CommittedCheckpoint]:
        """Return the committed checkpoints that are not quarantined, newest first; attempts at one step are in order of name."""
        return committed_checkpoints(self._names())

    def _names(self) -> list[StoreUri]:
        return [item.uri for item in self._store.list(self._home)]

    def newest(self, folder: Path, *, at_most: int | None = None) -> tuple[Checkpoint, StoreUri] | None:
        """Download and verify the newest valid checkpoint, up to step `at_most`, into `folder`; None if there is nothing to continue from.

        That is also so if the run only ever committed one step and that is corrupt: what this costs is one interval between checkpoints.

        Raises:
            DataRefused: if several steps were committed but all are corrupt or incomplete.
            BadInput: if the newest has another format; it is not changed.
        """
        candidates = [entry for entry in self.list_committed() if at_most is None or entry.step <= at_most]
        for entry in candidates:
            try:
                return self.fetch(entry.uri, folder), entry.uri
            except OtherFormat as error:
                raise BadInput(error.message, hint="continue with the version that began the run, or begin a new run") from error
            except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
                self.quarantine(entry.uri, str(problem))
        if at_most is not None and self.list_committed():  # later ones are intact: nothing of the run is lost
            return None
        quarantined = {step_of(uri) for uri in self._names() if uri.name == QUARANTINE_FILE}
        if len(quarantined) > 1:
            raise DataRefused(
                f"{self._home} holds checkpoints, but all of them are corrupt or incomplete",
                hint="restore one from a backup, or delete them to start again: celebdit storage delete RUN --part checkpoints",
            )
        if quarantined:
            self._warn(f"the only checkpoint in {self._home} is corrupt: training begins again at step 0")
        return None

    def quarantine(self, uri: StoreUri, reason: str) -> None:
        """Mark a checkpoint as corrupt: its files are kept, and it is not listed any more."""
        self._warn(f"checkpoint {uri} is corrupt and was quarantined: {reason}")
        self._store.put_bytes(uri / QUARANTINE_FILE, canonical_json({"reason": shorten(reason, max_characters=500)}))

    def verify(self, uri: StoreUri) -> dict[str, FileEntry]:
        """Read every file of a committed checkpoint, without keeping it, and return the files that it has.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is incomplete or corrupt.
        """
        _, step, entries = self._manifest(uri)
        if directory_name(step) != uri.key.split("/")[-2]:
            raise CheckpointInvalid(f"{uri / MANIFEST_FILE} is of step {step}")
        with ThreadPoolExecutor(_PARALLEL_FILES, thread_name_prefix="verify") as pool:
            checks = [pool.submit(self._store.check, uri / name, entry.sha256) for name, entry in entries.items()]
            for check in checks:
                check.result()
        return entries

    def fetch_copy(self, digest: str, folder: Path, *, files: Sequence[str], near: StoreUri) -> Checkpoint:
        """Fetch `files` of a checkpoint by its digest: from `near`, or from another attempt at the same step that has the same bytes.

        A copy that turns out to be corrupt is quarantined.

        Raises:
            DataRefused: if no copy is intact.
        """
        step = step_of(near / COMMIT_FILE)
        committed = [entry.uri for entry in self.list_committed() if entry.step == step]
        problems = [] if near in committed else [f"{near} does not exist or is quarantined"]
        for uri in sorted(committed, key=lambda uri: uri != near):
            try:
                if self.digest(uri) == digest:
                    return self.fetch(uri, folder, files=files)
                problems.append(f"{uri} has digest {self.digest(uri)}")
            except FileNotInCheckpoint as problem:
                problems.append(str(problem))
            except (ObjectMissing, DigestMismatch, CheckpointInvalid) as problem:
                problems.append(str(problem))
                self.quarantine(uri, str(problem))
        raise DataRefused(
            f"checkpoint {digest[:12]} of step {step} is corrupt or incomplete: {list_some(problems, most=5, separator='; ')}",
            hint="run the train step again: it makes the checkpoint again",
        )

    def fetch(self, uri: StoreUri, folder: Path, *, files: Iterable[str] | None = None) -> Checkpoint:
        """Download a committed checkpoint, or only some `files` of it, into `folder`; every file is verified against the manifest.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is incomplete or corrupt.
        """
        raw, step, entries = self._manifest(uri)
        target = folder / directory_name(step)
        if files is None:
            shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True, exist_ok=True)
        for name in entries if files is None else files:
            if name not in entries:
                raise FileNotInCheckpoint(f"{uri} has no file {name}, only {', '.join(sorted(entries))}")
            self._store.get_file(uri / name, target / name, sha256=entries[name].sha256)
        if files is None:
            (target / MANIFEST_FILE).write_bytes(raw)
            return verify(target)
        return Checkpoint(directory=target, step=step, digest=self.digest(uri), files={name: entries[name] for name in files})

    def state(self, uri: StoreUri) -> JsonObject:
        """Return the facts in the state of a committed checkpoint, verified against its manifest.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is incomplete or corrupt.
        """
        _, _, entries = self._manifest(uri)
        try:
            return dict(json.loads(self._store.get_bytes(uri / STATE_FILE, sha256=entries[STATE_FILE].sha256)))
        except (ValueError, KeyError, TypeError) as cause:
            raise CheckpointInvalid(f"{uri / STATE_FILE} is not readable: {cause}") from cause

    def complete_steps(self) -> set[int]:
        """Return the steps with a committed checkpoint whose files are all there, with the sizes in its manifest; reads no tensors."""
        sizes = {item.uri: item.size_bytes for item in self._store.list(self._home)}
        steps = set()
        for entry in committed_checkpoints(list(sizes)):
            try:
                _, _, files = self._manifest(entry.uri)
            except (ObjectMissing, DigestMismatch, CheckpointInvalid) as problem:
                self.quarantine(entry.uri, str(problem))
                continue
            wrong = [name for name, file in files.items() if sizes.get(entry.uri / name) != file.size_bytes]
            if wrong:
                self.quarantine(entry.uri, f"{', '.join(wrong)} are missing or of another size")
            else:
                steps.add(entry.step)
        return steps

    def _manifest(self, uri: StoreUri) -> tuple[bytes, int, dict[str, FileEntry]]:
        """Return the manifest of a committed checkpoint, and the step and files in it.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is missing or corrupt. OtherFormat: if another version wrote it.
        """
        raw = self._store.get_bytes(uri / MANIFEST_FILE, sha256=self.digest(uri))
        try:
            return raw, *decode_manifest(raw)
        except UnsupportedCheckpointFormat as error:
            raise OtherFormat(f"{uri}: {error}", hint="use the version of celebdit that wrote it") from error

    def digest(self, uri: StoreUri) -> str:
        """Return the digest in the commit of a checkpoint."""
        return read_commit(uri, self._store).digest

    def notes(self, uri: StoreUri) -> JsonObject:
        """Return the notes in the commit of a checkpoint."""
        return read_commit(uri, self._store).notes

    def score(self, uri: StoreUri, metric: str, value: float) -> None:
        """Store the value of a metric of a checkpoint, lower being better, for `retain`."""
        self._store.put_bytes(uri / f"{SCORE_PREFIX}{metric.replace('/', '.')}.json", canonical_json({"metric": metric, "value": value}))

    def retain(self, policy: Retention, *, attempt: str | None = None) -> list[StoreUri]:
        """Delete all checkpoints that `policy` does not keep, commit first, and what attempts before `attempt` left (`remove_abandoned`).

        Returns:
            The committed checkpoints that were deleted.
        """
        names = self._names()
        entries = committed_checkpoints(names)
        scores = [uri for uri in names if uri.name.startswith(SCORE_PREFIX)] if policy.best else []
        ranking = read_ranking(self._store, {entry.uri: entry.step for entry in entries}, scores, self._warn)
        kept = steps_to_keep(policy, [entry.step for entry in entries], ranking)
        obsolete = [entry.uri for entry in entries if entry.step not in kept]
        for uri in obsolete:
            self._store.delete(uri / COMMIT_FILE)
        self._delete_files(names, set(obsolete))
        if attempt is not None:
            self._remove_abandoned(names, before=attempt)
        return obsolete

    def remove_abandoned(self, *, before: str, ended: str | None = None) -> int:
        """Delete what attempts before `before`, and `ended`, left incomplete, and return how many checkpoints and uploads these were.

        Only what was incomplete at the first call, and once: what comes later belongs to an attempt that lives. Such a one loses at most
        what it was writing at the first call, and uploads it again before it commits it.
        """
        return self._remove_abandoned(self._names(), before=before, ended=ended)

    def _remove_abandoned(self, names: Sequence[StoreUri], *, before: str, ended: str | None = None) -> int:
        abandoned = abandoned_folders(names, before=before, ended=ended)
        if self._first_abandoned is None:
            self._first_abandoned = abandoned
        # Looked at again: the listing may be old, and a commit without files would be a corrupt checkpoint.
        abandoned = {folder for folder in abandoned & self._first_abandoned if not self._store.exists(folder / COMMIT_FILE)}
        self._delete_files(names, abandoned)
        self._first_abandoned = set()
        return len(abandoned) + self._abandoned_uploads.abort(before=before, ended=ended)

    def _delete_files(self, names: Sequence[StoreUri], folders: set[StoreUri]) -> None:
        for uri in names:
            if checkpoint_folder(uri) in folders and uri.name != COMMIT_FILE:
                self._store.delete(uri)
        self._versions.after_deleting(len(folders))
