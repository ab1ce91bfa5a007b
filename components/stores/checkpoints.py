"""Checkpoints in object storage: upload, verified download, and retention.

Layout: `step-<n>/<attempt>/` with the files of `model/checkpoint.py`, and `COMMIT.json` last (see `layout.py`). Promises: a
checkpoint without its commit does not exist; a corrupt one is reported, quarantined and never loaded; if some were committed but all are
corrupt, that is an error and not a fresh start. Keys are written once.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri
from model.canonical import JsonObject, canonical_json
from model.checkpoint_manifest import (
    MANIFEST_FILE,
    Checkpoint,
    CheckpointInvalid,
    UnsupportedCheckpointFormat,
    decode_manifest,
    directory_name,
    verify,
)

COMMIT_FILE = "COMMIT.json"
QUARANTINE_FILE = "QUARANTINE.json"
_SCORE_PREFIX = "SCORE-"
_STEP_FOLDER = re.compile(rf"/step-([0-9]{{1,18}})/[^/]+/{COMMIT_FILE}$")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `newest` steps (at least two), the `best` by each metric, and one after every `every_steps`."""

    newest: int
    best: int = 0
    every_steps: int | None = None


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A committed checkpoint in object storage, not yet verified."""

    uri: StoreUri
    step: int


class CheckpointStore:
    """The checkpoints below `home`, one prefix of a run's layout: its checkpoints, snapshots or averages."""

    def __init__(self, store: ObjectStore, home: StoreUri, *, warn: Callable[[str], None] = lambda text: None) -> None:
        self._store = store
        self._home = home
        self._warn = warn

    def upload(self, checkpoint: Checkpoint, attempt: str, *, notes: Mapping[str, object] | None = None) -> StoreUri:
        """Upload a local checkpoint and return its location; `notes` are stored with its commit. Repeating it is harmless."""
        target = self._home / directory_name(checkpoint.step) / attempt
        for name, entry in checkpoint.files.items():
            sha256 = self._store.put_file(target / name, checkpoint.directory / name)
            if sha256 != entry.sha256:
                raise DigestMismatch(f"{checkpoint.directory / name} changed on disk while it was uploaded")
        self._store.put_file(target / MANIFEST_FILE, checkpoint.directory / MANIFEST_FILE)
        commit = {"digest": checkpoint.digest, "step": checkpoint.step, "notes": dict(notes or {})}
        self._store.put_bytes(target / COMMIT_FILE, canonical_json(commit))
        return target

    def list_committed(self) -> list[CommittedCheckpoint]:
        """Return the committed checkpoints that are not quarantined, newest first; attempts at one step are in order of name."""
        return _committed_checkpoints(self._names())

    def _names(self) -> list[StoreUri]:
        return [item.uri for item in self._store.list(self._home)]

    def newest(self, folder: Path, *, at_most: int | None = None) -> tuple[Checkpoint, StoreUri] | None:
        """Download and verify the newest valid checkpoint, up to step `at_most`, into `folder`; None if none was ever committed.

        Raises:
            DataRefused: if some were committed but all are corrupt or incomplete.
            BadInput: if the newest has another format; it is not changed.
        """
        candidates = [entry for entry in self.list_committed() if at_most is None or entry.step <= at_most]
        for entry in candidates:
            try:
                return self.fetch(entry.uri, folder), entry.uri
            except UnsupportedCheckpointFormat as error:
                raise BadInput(f"{entry.uri}: {error}", hint="continue with the version that began the run, or begin a new run") from error
            except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
                self._warn(f"checkpoint {entry.uri} is corrupt and was quarantined: {problem}")
                self._store.put_bytes(entry.uri / QUARANTINE_FILE, canonical_json({"reason": str(problem)[:500]}))
        if candidates or self._any_quarantined():
            raise DataRefused(
                f"{self._home} holds checkpoints, but all of them are corrupt or incomplete",
                hint="restore one from a backup, or delete the run's prefix to start it again",
            )
        return None

    def _any_quarantined(self) -> bool:
        return any(uri.name == QUARANTINE_FILE for uri in self._names())

    def fetch(self, uri: StoreUri, folder: Path, *, files: Iterable[str] | None = None) -> Checkpoint:
        """Download a committed checkpoint, or only some `files` of it, into `folder`; every file is verified against the manifest.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is incomplete or corrupt.
        """
        raw = self._store.get_bytes(uri / MANIFEST_FILE, sha256=self.digest(uri))
        step, entries = decode_manifest(raw)
        target = folder / directory_name(step)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in entries if files is None else files:
            if name not in entries:
                raise CheckpointInvalid(f"{uri} has no file {name}, only {', '.join(sorted(entries))}")
            self._store.get_file(uri / name, target / name, sha256=entries[name].sha256)
        if files is None:
            (target / MANIFEST_FILE).write_bytes(raw)
            return verify(target)
        return Checkpoint(directory=target, step=step, digest=self.digest(uri), files={name: entries[name] for name in files})

    def digest(self, uri: StoreUri) -> str:
        """Return the digest in the commit of a checkpoint."""
        return str(self._commit(uri)["digest"])

    def notes(self, uri: StoreUri) -> JsonObject:
        """Return the notes in the commit of a checkpoint."""
        return dict(self._commit(uri).get("notes", {}))

    def _commit(self, uri: StoreUri) -> JsonObject:
        try:
            commit = json.loads(self._store.get_bytes(uri / COMMIT_FILE))
            commit["digest"]
        except (ValueError, KeyError, TypeError) as cause:
            raise CheckpointInvalid(f"{uri / COMMIT_FILE} is not readable: {cause}") from cause
        return dict(commit)

    def score(self, uri: StoreUri, metric: str, value: float) -> None:
        """Store the value of a metric of a checkpoint, lower being better, for `retain`."""
        name = f"{_SCORE_PREFIX}{metric.replace('/', '.')}.json"
        self._store.put_bytes(uri / name, canonical_json({"metric": metric, "value": value}))

    def retain(self, policy: Retention, *, attempt: str | None = None) -> list[StoreUri]:
        """Delete all checkpoints that `policy` does not keep, commit first, and uncommitted ones of attempts before `attempt`.

        Returns:
            The committed checkpoints that were deleted.
        """
        names = self._names()
        entries = _committed_checkpoints(names)
        kept = self._steps_to_keep(policy, entries, [uri for uri in names if uri.name.startswith(_SCORE_PREFIX)])
        obsolete = [entry.uri for entry in entries if entry.step not in kept]
        for uri in obsolete:
            self._store.delete(uri / COMMIT_FILE)
        deleted = set(obsolete) | (_abandoned_folders(names, before=attempt) if attempt is not None else set())
        for uri in names:
            if _folder(uri) in deleted and uri.name != COMMIT_FILE:
                self._store.delete(uri)
        return obsolete

    def _steps_to_keep(self, policy: Retention, entries: list[CommittedCheckpoint], scores: list[StoreUri]) -> set[int]:
        steps = sorted({entry.step for entry in entries}, reverse=True)
        kept = set(steps[: max(policy.newest, 2)])
        if policy.every_steps is not None:
            buckets: dict[int, int] = {}
            for step in steps:  # newest first, so that the first one after each milestone is kept
                buckets[step // policy.every_steps] = step
            kept |= {step for bucket, step in buckets.items() if bucket > 0}
        if policy.best:
            by_uri = {entry.uri: entry.step for entry in entries}
            ranked: dict[str, list[tuple[float, int]]] = {}
            for score in scores:
                if _folder(score) in by_uri:
                    try:
                        measured = json.loads(self._store.get_bytes(score))
                        metric, value = str(measured["metric"]), float(measured["value"])
                    except (ValueError, KeyError, TypeError, ObjectMissing) as problem:
                        self._warn(f"{score} is not a score and was ignored: {problem}")
                        continue
                    ranked.setdefault(metric, []).append((value, by_uri[_folder(score)]))
            kept |= {step for ranking in ranked.values() for _, step in sorted(ranking)[: policy.best]}
        return kept


def is_note(name: str) -> bool:
    """Return whether a file of this name is stored beside a checkpoint, without being a part of it."""
    return name in (COMMIT_FILE, QUARANTINE_FILE) or name.startswith(_SCORE_PREFIX)


def _committed_checkpoints(names: Sequence[StoreUri]) -> list[CommittedCheckpoint]:
    quarantined = {_folder(uri) for uri in names if uri.name == QUARANTINE_FILE}
    folders = [(_folder(uri), _STEP_FOLDER.search(uri.key)) for uri in names if uri.name == COMMIT_FILE]
    listed = [CommittedCheckpoint(uri, int(step[1])) for uri, step in folders if step is not None and uri not in quarantined]
    return sorted(listed, key=lambda entry: (entry.step, entry.uri.key), reverse=True)


def _abandoned_folders(names: Iterable[StoreUri], *, before: str) -> set[StoreUri]:
    """Return the folders without a commit of attempts older than `before`; names of attempts sort by time."""
    closed = {_folder(uri) for uri in names if uri.name in (COMMIT_FILE, QUARANTINE_FILE)}
    return {folder for folder in map(_folder, names) if folder not in closed and folder.name < before}


def _folder(uri: StoreUri) -> StoreUri:
    return StoreUri(uri.bucket, uri.key.rsplit("/", 1)[0])
