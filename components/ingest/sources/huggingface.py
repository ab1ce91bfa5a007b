"""Datasets on the Hugging Face hub: `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, downloaded by huggingface-hub, an optional extra.

Promises: every file is verified against the digest that the hub lists, and removed once it was read; the revision is resolved to a commit,
which is recorded; a missing library, missing credentials or terms that were not accepted give an error that says what to do.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from components.deployment import HUB_KEYS, HUB_SECRET
from components.errors import BadInput, CelebditError, DataRefused
from components.ingest.candidates import READ_HINT, Candidate, Source, is_image_name, may_be_image, refused_by_content, refused_by_name
from components.ingest.image_formats import HEAD_BYTES
from components.ingest.limits import Budget
from components.ingest.sources.hub_client import HubClient, HubFile
from components.ingest.sources.kinds import Reach, SourceKind
from components.ingest.sources.parallel_reads import read_in_order, require_within
from components.ingest.sources.parquets import PARQUET_SUFFIXES
from components.ingest.sources.remote import RemoteArchive, download_lock, take_download
from components.ingest.sources.series import Part, SeriesSource, part_names
from components.ingest.sources.tars import TAR_SUFFIXES
from components.system.own_folder import own_folder
from components.system.retry import RetryPolicy, retry

_ADDRESS = re.compile(r"datasets/([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w.-]{1,100}))?(?:/(.+))?")
_EXAMPLE = "hf://datasets/owner/name"
_ARCHIVES = (*TAR_SUFFIXES, *PARQUET_SUFFIXES, ".zip")
_DEADLINE_S = 300.0
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class HubSource:
    """The files of one dataset on the hub that are read: its tars and parquet files, its only zip, or its images."""

    def __init__(self, address: str, reach: Reach | None, *, deadline_s: float = _DEADLINE_S) -> None:
        match = _ADDRESS.fullmatch(address.rstrip("/"))
        if match is None or ".." in address.split("/"):
            raise BadInput(f"data.source hf://{address} is not a dataset on the hub", hint=f"write {_EXAMPLE}, or {_EXAMPLE}@REVISION")
        self._name, self._revision, self._below = match[1], match[2], (match[3] or "").strip("/")
        self._reach = reach
        self._deadline_s = deadline_s
        self._client = HubClient(self._name)

    @cached_property
    def _commit(self) -> str:
        return self._with_retries(lambda: self._client.commit_of(self._revision))

    @cached_property
    def _files(self) -> dict[str, HubFile]:
        files = self._with_retries(lambda: self._client.files_of(self._commit))
        below = [file for file in files if not self._below or file.name == self._below or file.name.startswith(f"{self._below}/")]
        if not below:
            raise BadInput(f"data.source {self.provenance()} has no files", hint="check the path on the dataset's page, below Files")
        return {file.name: file for file in below}

    @cached_property
    def _source(self) -> Source:
        names = part_names((file.name, file.size_bytes) for file in self._files.values())
        if names:
            beside = sorted(self._files.keys() - set(names))
            return SeriesSource(self.provenance(), [Part(name, self._archive(self._files[name])) for name in names], beside=beside)
        zips = [file for file in self._files.values() if file.name.lower().endswith(".zip")]
        images = any(map(is_image_name, self._files))
        if len(zips) == 1 and not images:
            return self._archive(zips[0])
        if len(zips) > 1 and not images:
            raise BadInput(f"data.source {self.provenance()} has {len(zips)} zips", hint=f"name one of them: {_EXAMPLE}/{zips[0].name}")
        return _HubImages(self.provenance(), list(self._files.values()), self._download, self._downloads)

    @property
    def _downloads(self) -> Path:
        assert self._reach is not None, "a source is read only after it was opened with a reach"
        return self._reach.downloads / "hub"

    def _archive(self, file: HubFile) -> RemoteArchive:
        label = f"hf://datasets/{self._name}@{self._commit}/{file.name}"
        return RemoteArchive(label, mark=lambda: f"{file.digest} {file.size_bytes}", fetch=lambda: self._fetch(file))

    def _fetch(self, file: HubFile) -> Path:
        assert self._reach is not None, "a source is read only after it was opened with a reach"
        suffix = next((suffix for suffix in _ARCHIVES if file.name.lower().endswith(suffix)), "")
        path = self._downloads / f"{file.digest[:32]}{suffix}"
        with download_lock(path, self._reach):
            self._reach.note(f"downloading {self.provenance()}: {file.name}, {file.size_bytes / 1e6:.1f} MB")
            with own_folder(self._downloads, "fetch") as folder:
                return take_download(self._download(file, folder).replace(path))

    def _download(self, file: HubFile, folder: Path) -> Path:
        """Return the verified file, downloaded to `folder`."""

        def download() -> Path:
            path = self._client.download(file, self._commit, folder)
            if not file.is_intact(path):
                path.unlink()
                raise DataRefused(f"{file.name} of {self.provenance()} arrives corrupt", hint="run it again later")
            return path

        return self._with_retries(download)

    def _with_retries(self, call: Callable[[], _T]) -> _T:
        try:
            return retry(
                call,
                what=f"read {self._name} from the Hugging Face hub",
                log=_log,
                policy=RetryPolicy(deadline_s=self._deadline_s),
                is_temporary=self._client.is_temporary,
            )
        except CelebditError:
            raise
        except Exception as error:
            raise self._client.meaning(error) from error

    def provenance(self) -> str:
        return f"hf://datasets/{self._name}@{self._commit}{f'/{self._below}' if self._below else ''}"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"hub {self.provenance()}".encode()).hexdigest()

    def count(self) -> int | None:
        return self._source.count()

    def archive_path(self) -> Path | None:
        return self._source.archive_path()

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        return self._source.candidates(budget)

    def require_unchanged(self) -> None:
        """Return at once: files are read as the commit lists them."""


class _HubImages:
    """A dataset's files, each of which may be an image."""

    def __init__(self, label: str, files: Sequence[HubFile], download: Callable[[HubFile, Path], Path], downloads: Path) -> None:
        self._label = label
        self._files = files
        self._download = download
        self._downloads = downloads
        if not any(may_be_image(file.name) for file in files):
            raise BadInput(f"data.source {label} contains no images", hint=READ_HINT)

    def count(self) -> int | None:
        return len(self._files)

    def archive_path(self) -> Path | None:
        return None

    def fingerprint(self) -> str:
        return hashlib.sha256(self._label.encode()).hexdigest()

    def provenance(self) -> str:
        return self._label

    def require_unchanged(self) -> None:
        """Return at once: files are read as the commit lists them."""

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        require_within(budget, ((file.name, file.size_bytes) for file in self._files), label=self._label, noun="files")
        yield from read_in_order(self._files, lambda file: self._read(file, budget.max_image_bytes))

    def _read(self, file: HubFile, max_bytes: int) -> Candidate:
        refused = refused_by_name(file.name)
        if refused is not None:
            return Candidate(file.name, b"", refused)
        if file.size_bytes > max_bytes:
            return Candidate(file.name, bytes(max_bytes + 1))  # judged by its size alone
        with own_folder(self._downloads, "image") as folder:
            data = self._download(file, folder).read_bytes()
        refused = refused_by_content(file.name, data[:HEAD_BYTES])
        return Candidate(file.name, b"" if refused else data, refused)


def open_hub(source: str, image_px: int, reach: Reach | None) -> Source | None:
    """Open a dataset on the hub; without `reach` only the form of the URI, and that huggingface-hub is installed, are checked."""
    dataset = HubSource(source.partition("://")[2], reach)
    return dataset if reach is not None else None


KIND = SourceKind(("hf",), _EXAMPLE, open_hub, names_published_dataset=True, secret=HUB_SECRET, credentials=HUB_KEYS)
