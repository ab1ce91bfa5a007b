"""Checkpoints in object storage: where they lie, which of them count, and how they get there and back.

Layout: `runs/<run_key>/checkpoints/step-<n>/<attempt>/` with the files of `model/checkpoint.py`, and `COMMIT.json` last. Promises: a
checkpoint without its commit does not exist; a damaged one is noted, set aside and never loaded; if none is whole but some were committed,
that is an error and not a fresh start. Keys are written once.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataRefused
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri
from model.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    CheckpointInvalid,
    decode_manifest,
    directory_name,
    verify,
)
from model.config import canonical_json

COMMIT_FILE = "COMMIT.json"
QUARANTINE_FILE = "QUARANTINE.json"


@dataclass(frozen=True)
class Committed:
    """A committed checkpoint in object storage, not yet verified."""

    uri: StoreUri
    step: int


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, store: ObjectStore, run: StoreUri, *, warn: Callable[[str], None] = lambda text: None) -> None:
        self._store = store
        self._home = run / "checkpoints"
        self._warn = warn

    def upload(self, checkpoint: Checkpoint, attempt: str) -> StoreUri:
        """Make a local checkpoint durable and return its location. Doing it again is harmless."""
        target = self._home / directory_name(checkpoint.step) / attempt
        for name, entry in checkpoint.files.items():
            found = self._store.put_file(target / name, checkpoint.directory / name)
            if found != entry.sha256:
                raise DigestMismatch(f"{checkpoint.directory / name} changed on disk while it was uploaded")
        self._store.put_file(target / MANIFEST_FILE, checkpoint.directory / MANIFEST_FILE)
        self._store.put_bytes(target / COMMIT_FILE, canonical_json({"digest": checkpoint.digest, "step": checkpoint.step}))
        return target

    def committed(self) -> list[Committed]:
        """Return what was committed and not set aside, newest first; among attempts at one step the order is by name."""
        names = [item.uri for item in self._store.list(self._home)]
        aside = {_folder(uri) for uri in names if uri.name == QUARANTINE_FILE}
        found = [_folder(uri) for uri in names if uri.name == COMMIT_FILE]
        listed = [Committed(uri, int(uri.key.split("/")[-2].removeprefix("step-"))) for uri in found if uri not in aside]
        return sorted(listed, key=lambda entry: (entry.step, entry.uri.key), reverse=True)

    def newest(self, folder: Path, *, at_most: int | None = None) -> tuple[Checkpoint, StoreUri] | None:
        """Download and verify the newest whole checkpoint, up to step `at_most`, into `folder`; None if there never was one.

        Raises:
            DataRefused: if some were committed but none of them is whole.
        """
        candidates = [entry for entry in self.committed() if at_most is None or entry.step <= at_most]
        for entry in candidates:
            try:
                return self.fetch(entry.uri, folder), entry.uri
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
        return any(item.uri.name == QUARANTINE_FILE for item in self._store.list(self._home))

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
        try:
            return str(json.loads(self._store.get_bytes(uri / COMMIT_FILE))["digest"])
        except (ValueError, KeyError, TypeError) as cause:
            raise CheckpointInvalid(f"{uri / COMMIT_FILE} is not readable: {cause}") from cause

    def keep_newest(self, count: int, *, spared: Iterable[StoreUri] = ()) -> list[StoreUri]:
        """Delete all committed checkpoints but the `count` newest steps and the `spared` ones, commit first; return what went."""
        entries = self.committed()
        kept_steps = sorted({entry.step for entry in entries}, reverse=True)[: max(count, 2)]
        doomed = [entry.uri for entry in entries if entry.step not in kept_steps and entry.uri not in set(spared)]
        for uri in doomed:
            self._store.delete(uri / COMMIT_FILE)
            for item in self._store.list(uri):
                self._store.delete(item.uri)
        return doomed


def _folder(uri: StoreUri) -> StoreUri:
    return StoreUri(uri.bucket, uri.key.rsplit("/", 1)[0])
