"""Checkpoints in object storage: where they lie, which of them count, and how they get there and back.

Layout: `runs/<run_key>/checkpoints/step-<n>/<attempt>/` with the files of `model/checkpoint.py`, and `COMMIT.json` last. Promises: a
checkpoint without its commit does not exist; a damaged one is noted, set aside and never loaded; if none is whole but some were committed,
that is an error and not a fresh start. Keys are written once.
"""

import json
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
    CheckpointOfAnotherFormat,
    decode_manifest,
    directory_name,
    verify,
)

COMMIT_FILE = "COMMIT.json"
QUARANTINE_FILE = "QUARANTINE.json"
SNAPSHOTS = "snapshots"
"""Folder of a run's averaged weights at regular steps, all of which are kept."""
AVERAGES = "averages"
"""Folder of the averages that were recombined from them afterwards."""
_SCORE_PREFIX = "SCORE-"


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `newest` steps (at least two), the `best` of each metric, and one after every `every_steps`."""

    newest: int
    best: int = 0
    every_steps: int | None = None


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint in object storage, not yet verified."""

    uri: StoreUri
    step: int


class CheckpointStore:
    """The checkpoints of one run, or what else of it is kept in the same form in another `folder`."""

    def __init__(
        self, store: ObjectStore, run: StoreUri, *, folder: str = "checkpoints", warn: Callable[[str], None] = lambda text: None
    ) -> None:
        self._store = store
        self._home = run / folder
        self._warn = warn

    def upload(self, checkpoint: Checkpoint, attempt: str, *, notes: Mapping[str, object] | None = None) -> StoreUri:
        """Make a local checkpoint durable and return its location; `notes` are kept beside it. Doing it again is harmless."""
        target = self._home / directory_name(checkpoint.step) / attempt
        for name, entry in checkpoint.files.items():
            found = self._store.put_file(target / name, checkpoint.directory / name)
            if found != entry.sha256:
                raise DigestMismatch(f"{checkpoint.directory / name} changed on disk while it was uploaded")
        self._store.put_file(target / MANIFEST_FILE, checkpoint.directory / MANIFEST_FILE)
        commit = {"digest": checkpoint.digest, "step": checkpoint.step, "notes": dict(notes or {})}
        self._store.put_bytes(target / COMMIT_FILE, canonical_json(commit))
        return target

    def committed(self) -> list[Committed]:
        """Return what was committed and not set aside, newest first; among attempts at one step the order is by name."""
        return _committed(self._names())

    def _names(self) -> list[StoreUri]:
        return [item.uri for item in self._store.list(self._home)]

    def newest(self, folder: Path, *, at_most: int | None = None) -> tuple[Checkpoint, StoreUri] | None:
        """Download and verify the newest whole checkpoint, up to step `at_most`, into `folder`; None if there never was one.

        Raises:
            DataRefused: if some were committed but none of them is whole.
            BadInput: if the newest was written in another format; it is left as it is.
        """
        candidates = [entry for entry in self.committed() if at_most is None or entry.step <= at_most]
        for entry in candidates:
            try:
                return self.fetch(entry.uri, folder), entry.uri
            except CheckpointOfAnotherFormat as error:
                raise BadInput(f"{entry.uri}: {error}", hint="continue with the version that began the run, or begin a new run") from error
            except (CheckpointInvalid, ObjectMissing, DigestMismatch) as problem:
                self._warn(f"checkpoint {entry.uri} is damaged and set aside: {problem}")
                self._store.put_bytes(entry.uri / QUARANTINE_FILE, canonical_json({"reason": str(problem)[:500]}))
        if candidates or self._any_aside():
            raise DataRefused(
                f"{self._home} holds checkpoints, but none of them is whole",
                hint="restore one from a backup, or delete the run's folder to start it again",
            )
        return None

    def _any_aside(self) -> bool:
        return any(uri.name == QUARANTINE_FILE for uri in self._names())

    def fetch(self, uri: StoreUri, folder: Path, *, files: Iterable[str] | None = None) -> Checkpoint:
        """Download a committed checkpoint, or only some `files` of it, into `folder`; every file is checked against the manifest.

        Raises:
            ObjectMissing, DigestMismatch, CheckpointInvalid: if it is not whole.
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
        """Return the digest that a committed checkpoint was committed with."""
        return str(self._commit(uri)["digest"])

    def notes(self, uri: StoreUri) -> JsonObject:
        """Return what was noted beside a committed checkpoint."""
        return dict(self._commit(uri).get("notes", {}))

    def _commit(self, uri: StoreUri) -> JsonObject:
        try:
            commit = json.loads(self._store.get_bytes(uri / COMMIT_FILE))
            commit["digest"]
        except (ValueError, KeyError, TypeError) as cause:
            raise CheckpointInvalid(f"{uri / COMMIT_FILE} is not readable: {cause}") from cause
        return dict(commit)

    def score(self, uri: StoreUri, metric: str, value: float) -> None:
        """Note what a checkpoint was measured at, lower being better, for `retain` to know the best."""
        name = f"{_SCORE_PREFIX}{metric.replace('/', '.')}.json"
        self._store.put_bytes(uri / name, canonical_json({"metric": metric, "value": value}))

    def retain(self, policy: Retention, *, attempt: str | None = None) -> list[StoreUri]:
        """Delete all checkpoints that `policy` does not keep, commit first, and what attempts before `attempt` left without a commit.

        Returns:
            The committed checkpoints that went.
        """
        names = self._names()
        entries = _committed(names)
        kept = self._kept(policy, entries, [uri for uri in names if uri.name.startswith(_SCORE_PREFIX)])
        doomed = [entry.uri for entry in entries if entry.step not in kept]
        for uri in doomed:
            self._store.delete(uri / COMMIT_FILE)
        gone = set(doomed) | (_abandoned(names, before=attempt) if attempt is not None else set())
        for uri in names:
            if _folder(uri) in gone and uri.name != COMMIT_FILE:
                self._store.delete(uri)
        return doomed

    def _kept(self, policy: Retention, entries: list[Committed], scores: list[StoreUri]) -> set[int]:
        steps = sorted({entry.step for entry in entries}, reverse=True)
        kept = set(steps[: max(policy.newest, 2)])
        if policy.every_steps is not None:
            buckets: dict[int, int] = {}
            for step in steps:  # newest first, so the first one after each milestone stays
                buckets[step // policy.every_steps] = step
            kept |= {step for bucket, step in buckets.items() if bucket > 0}
        if policy.best:
            by_uri = {entry.uri: entry.step for entry in entries}
            ranked: dict[str, list[tuple[float, int]]] = {}
            for score in scores:
                if _folder(score) in by_uri:
                    told = json.loads(self._store.get_bytes(score))
                    ranked.setdefault(told["metric"], []).append((float(told["value"]), by_uri[_folder(score)]))
            kept |= {step for ranking in ranked.values() for _, step in sorted(ranking)[: policy.best]}
        return kept


def is_note(name: str) -> bool:
    """Return whether object storage keeps a file of this name beside a checkpoint, not as a part of it."""
    return name in (COMMIT_FILE, QUARANTINE_FILE) or name.startswith(_SCORE_PREFIX)


def _committed(names: Sequence[StoreUri]) -> list[Committed]:
    aside = {_folder(uri) for uri in names if uri.name == QUARANTINE_FILE}
    found = [_folder(uri) for uri in names if uri.name == COMMIT_FILE]
    listed = [Committed(uri, int(uri.key.split("/")[-2].removeprefix("step-"))) for uri in found if uri not in aside]
    return sorted(listed, key=lambda entry: (entry.step, entry.uri.key), reverse=True)


def _abandoned(names: Iterable[StoreUri], *, before: str) -> set[StoreUri]:
    """Return the folders without a commit that attempts older than `before` have left; names of attempts sort by time."""
    whole = {_folder(uri) for uri in names if uri.name in (COMMIT_FILE, QUARANTINE_FILE)}
    return {folder for folder in map(_folder, names) if folder not in whole and folder.name < before}


def _folder(uri: StoreUri) -> StoreUri:
    return StoreUri(uri.bucket, uri.key.rsplit("/", 1)[0])
