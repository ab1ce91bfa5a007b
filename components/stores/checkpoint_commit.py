"""The commit of a stored checkpoint, which is written last. Does not list commits; see `checkpoint_names.py`."""

import json
from dataclasses import dataclass

from components.storage import StoreUri
from components.storage.reader import StoreReader
from components.stores.checkpoint_names import COMMIT_FILE
from model.canonical import JsonObject
from model.checkpoint_manifest import CheckpointInvalid


@dataclass(frozen=True)
class Commit:
    """What the commit of a checkpoint says of it."""

    digest: str
    """The sha256 of its manifest."""
    notes: JsonObject
    """What is stored beside it without being a part of it."""


def read_commit(checkpoint: StoreUri, reader: StoreReader) -> Commit:
    """Return the commit of the checkpoint at `checkpoint`.

    Raises:
        ObjectMissing: if it has none. CheckpointInvalid: if it cannot be read.
    """
    uri = checkpoint / COMMIT_FILE
    try:
        commit = json.loads(reader.get_bytes(uri))
        return Commit(str(commit["digest"]), dict(commit.get("notes", {})))
    except (ValueError, KeyError, TypeError) as cause:
        raise CheckpointInvalid(f"{uri} is damaged: {cause}") from cause
