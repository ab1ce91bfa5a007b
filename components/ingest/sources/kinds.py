"""What a kind of source is: its schemes, how it is opened, and what it needs from its surroundings.

A source module defines one `SourceKind`; `open_source.py` lists them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.ingest.candidates import Source
from components.storage import ObjectStore
from components.stores.layout import StoreLayout


@dataclass(frozen=True)
class Reach:
    """What a source that is not on this machine is reached with."""

    store: ObjectStore
    downloads: Path
    note: Callable[[str], None] = lambda text: None
    layout: StoreLayout | None = None
    """Where the project's own datasets are."""


@dataclass(frozen=True)
class SourceKind:
    """One way to name images in `data.source`."""

    schemes: tuple[str, ...]
    """Text before `://`; the empty scheme is a path."""
    example: str
    """How to write it, for help texts and error hints."""
    open: Callable[[str, int, Reach | None], Source | None]
    """Open the complete URI at `image_px`; without a reach, a remote source is only checked for its form, and None is returned.

    Raises `BadInput` if the source does not exist, cannot be read or is malformed, `DataRefused` if it is damaged.
    """
    local_path: Callable[[str], Path] | None = None
    """Return the path that a URI names, which containers must mount and a cluster cannot see; None for a source elsewhere."""
    names_published_dataset: bool = False
    """Whether the URI itself names a published dataset, whose licence may have to be accepted."""
    secret: str | None = None
    """Kubernetes Secret that holds its credentials, if it has credentials of its own."""
    credentials: tuple[str, ...] = ()
    """Environment variables with its credentials, which are also the keys of `secret`."""
