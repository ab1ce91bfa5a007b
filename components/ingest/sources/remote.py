"""Sources in object storage: an archive, downloaded once and continued after an interruption, or what lies below a prefix: images,
archives, or a dataset of our own.

Promises: keys are labels, never paths; a refusal by the store is bad input, with the store's error code; an unchanged source is not
downloaded again; an object is read only as it was listed, and the fingerprint is made of the listing. Credentials and endpoint are those
of the project's store.
"""

import fcntl
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from components.errors import BadInput, CelebditError
from components.ingest.candidates import READ_HINT, Candidate, Source, is_image_name, may_be_image, refused_by_content, refused_by_name
from components.ingest.image_formats import HEAD_BYTES
from components.ingest.limits import Budget
from components.ingest.sources.archives import open_archive
from components.ingest.sources.kinds import Reach, SourceKind
from components.ingest.sources.parallel_reads import read_in_order, require_within
from components.ingest.sources.series import Part, SeriesSource, part_names
from components.ingest.sources.stored_dataset import dataset_at
from components.storage import ObjectMissing, ObjectStore, StoredObject, StoreUri, refusal
from components.system.locks import lock

_TAKEN = "-of-"
_taken: list[IO[bytes]] = []
"""The downloads that this process reads, open for their locks."""


class RemoteArchive:
    """An archive that is downloaded before it is read. `fetch` returns its path; `mark` changes when its bytes do."""

    def __init__(self, label: str, *, mark: Callable[[], str], fetch: Callable[[], Path]) -> None:
        self._label = label
        self._mark = mark
        self._fetch = fetch
        self._fetched: tuple[Path, Source] | None = None

    def fingerprint(self) -> str:
        return hashlib.sha256(f"remote {self._mark()}".encode()).hexdigest()

    def count(self) -> int | None:
        return self._fetched[1].count() if self._fetched is not None else None

    def provenance(self) -> str:
        return self._label

    def archive_path(self) -> Path | None:
        return self._open()[1].archive_path()

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        path, source = self._open()
        yield from source.candidates(budget)
        path.unlink(missing_ok=True)

    def require_unchanged(self) -> None:
        """Return at once: `fetch` accepts only the version that the fingerprint is of."""

    def _open(self) -> tuple[Path, Source]:
        if self._fetched is None or not self._fetched[0].exists():
            path = self._fetch()
            self._fetched = path, open_archive(path, self._label)
        return self._fetched


def open_s3(source: str, image_px: int, reach: Reach | None) -> Source | None:
    """Open an archive or a prefix in object storage; without `reach` only the form of the URI is checked.

    Raises:
        BadInput: if there is neither, or the store refuses.
    """
    uri = StoreUri.parse_source(source)
    if reach is None:
        return None
    with _refused_as_bad_input(uri):
        if uri.key and not uri.key.endswith("/"):
            try:
                listed = reach.store.describe(uri)
            except ObjectMissing:
                listed = None
            if listed is not None:
                return _archive(listed, reach)
        if (dataset := dataset_at(uri, image_px, reach)) is not None:
            return dataset
        objects = [item for item in reach.store.list(uri) if not item.uri.key.endswith("/")]
        return _series(uri, objects, reach) or PrefixSource(uri, objects, reach.store)


def _series(uri: StoreUri, objects: Sequence[StoredObject], reach: Reach) -> Source | None:
    """Return tars or parquet files below a prefix as one source, if they are most of what is there."""
    by_name = {item.uri.relative_to(uri): item for item in objects}
    names = part_names((name, item.size_bytes) for name, item in by_name.items())
    parts = [Part(name, _archive(by_name[name], reach)) for name in names]
    return SeriesSource(str(uri), parts, beside=sorted(by_name.keys() - set(names))) if parts else None


def _archive(listed: StoredObject, reach: Reach) -> RemoteArchive:
    uri = listed.uri
    folder = reach.downloads / hashlib.sha256(str(uri).encode()).hexdigest()[:16]
    path = folder / (uri.name if is_plain(uri.name) else "archive")

    def fetch() -> Path:
        reach.note(f"downloading {uri}")
        with _refused_as_bad_input(uri), download_lock(path, reach):
            reach.store.get_file(uri, path, continued=True, listed=listed)
            return take_download(path)

    return RemoteArchive(str(uri), mark=lambda: f"{uri} {listed.size_bytes} {listed.version}", fetch=fetch)


def download_lock(path: Path, reach: Reach) -> AbstractContextManager[None]:
    """Return the lock under which the archive at `path` is downloaded and taken."""
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    waiting = "another process downloads the same archive; waiting for it"
    return lock(reach.downloads.with_name("download-locks") / f"{name}.lock", on_wait=lambda: reach.note(waiting))


def take_download(path: Path) -> Path:
    """Give a finished download a name that this process alone reads and removes; call it under `download_lock`.

    Downloads that killed processes took are removed: the kernel holds the lock on one until its process ends.
    """
    for left in path.parent.glob(f"*{_TAKEN}{path.name}"):
        with left.open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
    own = path.with_name(f"{uuid.uuid4().hex[:8]}{_TAKEN}{path.name}")
    file = path.open("rb")
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    _taken.append(file)
    return Path(path.replace(own))


def is_plain(name: str) -> bool:
    """Return whether an object's name is safe as a local file name."""
    return name.isascii() and name.replace(".", "").replace("-", "").replace("_", "").isalnum() and not name.startswith(".")


class PrefixSource:
    """All objects below a prefix."""

    def __init__(self, uri: StoreUri, objects: Sequence[StoredObject], store: ObjectStore) -> None:
        self._uri = uri
        self._objects = objects
        self._store = store
        if not self._objects:
            raise BadInput(f"data.source {uri} does not exist", hint="give the key of an archive, or a prefix with images below it")
        if not any(self._may_be_image(item) for item in self._objects):
            raise BadInput(f"data.source {uri} contains no images", hint=READ_HINT)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"prefix {self._uri}".encode())
        for item in self._objects:
            digest.update(f"{item.uri.key}\0{item.size_bytes} {item.version}\n".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def count(self) -> int | None:
        return len(self._objects)

    def provenance(self) -> str:
        return str(self._uri)

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        sizes = ((item.uri.relative_to(self._uri), item.size_bytes) for item in self._objects)
        require_within(budget, sizes, label=str(self._uri), noun="objects")
        yield from read_in_order(self._objects, lambda item: self._read(item, budget.max_image_bytes + 1))

    def _may_be_image(self, item: StoredObject) -> bool:
        return may_be_image(item.uri.relative_to(self._uri))

    def require_unchanged(self) -> None:
        """Return at once: an object is read only as it was listed, which the fingerprint is made of."""

    def _read(self, item: StoredObject, limit: int) -> Candidate:
        name = item.uri.relative_to(self._uri)
        refused = refused_by_name(name)
        if refused is None and not is_image_name(name):
            refused = refused_by_content(name, self._store.get_head(item.uri, limit=HEAD_BYTES, listed=item))
        return Candidate(name, b"" if refused else self._store.get_head(item.uri, limit=limit, listed=item), refused)


@contextmanager
def _refused_as_bad_input(uri: StoreUri) -> Iterator[None]:
    try:
        yield
    except CelebditError as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise BadInput(
            f"data.source {uri} cannot be read: object storage answered {reason}",
            hint="check the bucket's name, and that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY may read it",
        ) from error


KIND = SourceKind(("s3",), "s3://bucket/archive.zip or s3://bucket/folder/", open_s3)
