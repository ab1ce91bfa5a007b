"""Names of the objects of a checkpoint, and what a listing of them says: which are committed, quarantined or abandoned.

Promises: pure functions of names; reads no object.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.storage import StoreUri

COMMIT_FILE = "COMMIT.json"
QUARANTINE_FILE = "QUARANTINE.json"
SCORE_PREFIX = "SCORE-"
_RESCUED_PREFIX = "0-"
_STEP_FOLDER = re.compile(rf"/step-([0-9]{{1,18}})/[^/]+/{COMMIT_FILE}$")


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A committed checkpoint in object storage, not yet verified."""

    uri: StoreUri
    step: int


def is_note(name: str) -> bool:
    """Return whether a file of this name is stored beside a checkpoint, without being a part of it."""
    return name in (COMMIT_FILE, QUARANTINE_FILE) or name.startswith(SCORE_PREFIX)


def committed_checkpoints(names: Sequence[StoreUri]) -> list[CommittedCheckpoint]:
    """Return the checkpoints with a commit that are not quarantined, newest first; attempts at one step are in order of name."""
    quarantined = {checkpoint_folder(uri) for uri in names if uri.name == QUARANTINE_FILE}
    folders = [(checkpoint_folder(uri), _STEP_FOLDER.search(uri.key)) for uri in names if uri.name == COMMIT_FILE]
    listed = [CommittedCheckpoint(uri, int(step[1])) for uri, step in folders if step is not None and uri not in quarantined]
    return sorted(listed, key=lambda entry: (entry.step, entry.uri.key), reverse=True)


def rescued_name(attempt: str) -> str:
    """Return the name of what `attempt` uploads for an earlier one; it sorts before the names of all attempts."""
    return f"{_RESCUED_PREFIX}{attempt}"


def is_abandoned(folder: StoreUri, *, before: str, ended: str | None = None) -> bool:
    """Return whether the checkpoint in `folder` is written by an attempt before `before`, or by `ended`; names of attempts sort by time.

    What was rescued under the name of `ended` is not: the machine that rescues need not be the one that `ended` ran on.
    """
    return folder.name == ended or folder.name.removeprefix(_RESCUED_PREFIX) < before


def abandoned_folders(names: Iterable[StoreUri], *, before: str, ended: str | None = None) -> set[StoreUri]:
    """Return the folders without a commit of attempts older than `before`, and of `ended`."""
    closed = {checkpoint_folder(uri) for uri in names if uri.name in (COMMIT_FILE, QUARANTINE_FILE)}
    return {folder for folder in map(checkpoint_folder, names) if folder not in closed and is_abandoned(folder, before=before, ended=ended)}


def step_of(uri: StoreUri) -> int:
    """Return the step of the checkpoint that a file belongs to."""
    return int(uri.key.split("/")[-3].removeprefix("step-"))


def checkpoint_folder(uri: StoreUri) -> StoreUri:
    """Return the location of the checkpoint that a file belongs to."""
    return StoreUri(uri.bucket, uri.key.rsplit("/", 1)[0])
