"""What takes room in a store: its objects by run and part, by dataset, and by kind of everything else.

Promises: pure functions of a listing. An object is counted once, the digests of its pages with a run or dataset; one whose key has no place
in the layout (`layout.py`) is counted as foreign.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from components.storage import StoreUri
from components.storage.uri import StoredObject

PARTS = ("checkpoints", "snapshots", "averages", "samples", "evaluations")
"""What a run stores of some size, by the folder in the run. Its specifications, journal and leases are small."""
JOURNAL = "journal"
FOREIGN = "foreign"
KINDS = ("weights", "versions", "models", "sweeps", "speeds", "checksums", "quarantine")
"""Folders of a store that hold neither runs nor datasets."""
_FEATURES_DIGITS = 32
"""Of the digest of a dataset, in the keys of its features."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=@+-]*(/[A-Za-z0-9][A-Za-z0-9._=@+-]*)*")
"""Of every object that celebdit writes (`storage/uri.py`). Others are another program's, like `samples/` and `samples//a` of a web page for
buckets, or are no key everywhere: a proxy before a server may take `samples/../../a` for `a`."""
_RUN_KEY, _DIGEST = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{64}")


@dataclass
class Stored:
    """Objects that belong together."""

    objects: list[StoredObject] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(item.size_bytes for item in self.objects)

    @property
    def written(self) -> datetime | None:
        """When the newest object was written, by the clock of the store; None if it does not say."""
        return max((item.modified for item in self.objects if item.modified is not None), default=None)


@dataclass
class StoredRun(Stored):
    """The objects of one run, also by the folders in it."""

    parts: dict[str, Stored] = field(default_factory=lambda: defaultdict(Stored))


@dataclass
class Usage:
    """The objects of a store: runs by run key, datasets by name and digest with the features that were computed of them, and the rest."""

    runs: dict[str, StoredRun] = field(default_factory=lambda: defaultdict(StoredRun))
    datasets: dict[tuple[str, str], Stored] = field(default_factory=lambda: defaultdict(Stored))
    others: dict[str, Stored] = field(default_factory=lambda: defaultdict(Stored))

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(stored.size_bytes for group in (self.runs, self.datasets, self.others) for stored in group.values())


def usage_of(objects: Iterable[StoredObject], root: StoreUri) -> Usage:
    """Sort the objects below the root of a store by what they belong to."""
    usage = Usage()
    features: list[tuple[str, StoredObject]] = []
    for item in objects:
        key_below = item.uri.relative_to(root)
        match key_below.split("/") if _KEY.fullmatch(key_below) else []:
            case ["runs", key, part, *below] | ["checksums", "runs", key, part, *below] if below and _RUN_KEY.fullmatch(key):
                usage.runs[key].objects.append(item)
                usage.runs[key].parts[part].objects.append(item)
            case ["datasets", name, digest, *below] if below and _DIGEST.fullmatch(digest):
                usage.datasets[name, digest].objects.append(item)
            case ["checksums", "datasets", name, page] if _DIGEST.fullmatch(page.removesuffix(".json")):
                usage.datasets[name, page.removesuffix(".json")].objects.append(item)
            case ["datasets", _, "requests", _]:
                usage.others["requests"].objects.append(item)
            case ["references", digest, *below] if below:
                features.append((digest, item))
            case [kind, *below] if below and kind in KINDS:
                usage.others[kind].objects.append(item)
            case _:
                usage.others[FOREIGN].objects.append(item)
    names = {digest[:_FEATURES_DIGITS]: (name, digest) for name, digest in sorted(usage.datasets, reverse=True)}
    for digest, item in features:
        dataset = names.get(digest[:_FEATURES_DIGITS])
        (usage.others["references"] if dataset is None else usage.datasets[dataset]).objects.append(item)
    return usage
