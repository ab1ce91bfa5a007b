"""Datasets on Kaggle: `kaggle://owner/name` or `kaggle://owner/name/versions/N`, downloaded by kagglehub, an optional extra.

Promises: the archive is never unpacked on disk; an interrupted download is continued and checked against Kaggle's own digest; a
missing library or missing credentials give an error that says what to install or set. The version that was read is recorded.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from components.deployment import KAGGLE_KEYS, KAGGLE_SECRET
from components.errors import BadInput, CelebditError, DataRefused, TemporaryFailure, first_line
from components.ingest.candidates import Candidate, Source
from components.ingest.limits import Budget
from components.ingest.sources.kinds import Reach, SourceKind
from components.ingest.sources.remote import RemoteArchive, download_lock, take_download
from components.system.retry import RetryPolicy, retry

_HANDLE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,80})/([A-Za-z0-9][A-Za-z0-9_-]{0,80})(?:/versions/([1-9][0-9]{0,8}))?")
_CREDENTIALS_HINT = (
    "make a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it (or KAGGLE_USERNAME and KAGGLE_KEY), and accept the "
    f"dataset's terms on its page; on a cluster put them into the Secret {KAGGLE_SECRET}"
)
_DEADLINE_S = 300.0
_log = logging.getLogger(__name__)


def parse_handle(text: str) -> tuple[str, str, int | None]:
    """Read `owner/name` or `owner/name/versions/N`.

    Raises:
        BadInput: if it is neither.
    """
    match = _HANDLE.fullmatch(text.rstrip("/"))
    if match is None:
        raise BadInput(
            f"data.source kaggle://{text} is not a Kaggle dataset", hint="write kaggle://owner/name or kaggle://owner/name/versions/N"
        )
    return match[1], match[2], int(match[3]) if match[3] else None


class KaggleSource:
    """The archive of one dataset on Kaggle."""

    def __init__(self, handle: str, reach: Reach | None, *, deadline_s: float = _DEADLINE_S) -> None:
        self._owner, self._name, self._asked_version = parse_handle(handle)
        self._reach = reach
        self._deadline_s = deadline_s
        self._hub = _Hub()

    @cached_property
    def _version(self) -> int:
        if self._asked_version is not None:
            return self._asked_version
        return int(self._with_retries(lambda: self._hub.current_version(self._owner, self._name)))

    @cached_property
    def _archive(self) -> RemoteArchive:
        return RemoteArchive(self.provenance(), mark=self.provenance, fetch=self._fetch)

    def provenance(self) -> str:
        return f"kaggle://{self._owner}/{self._name}/versions/{self._version}"

    def fingerprint(self) -> str:
        return self._archive.fingerprint()

    def count(self) -> int | None:
        return self._archive.count()

    def archive_path(self) -> Path | None:
        return self._archive.archive_path()

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        return self._archive.candidates(budget)

    def require_unchanged(self) -> None:
        self._archive.require_unchanged()

    def _fetch(self) -> Path:
        assert self._reach is not None, "a source is read only after it was opened with a reach"
        folder, note = self._reach.downloads / "kaggle", self._reach.note
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self._owner}.{self._name}.{self._version}.archive"
        partial = path.with_suffix(".partial")
        with download_lock(path, self._reach):
            have_bytes = partial.stat().st_size if partial.exists() else 0
            note(f"downloading {self.provenance()}" + (f", continuing after {have_bytes / 1e6:.1f} MB" if have_bytes else ""))
            self._with_retries(lambda: self._hub.download(self._owner, self._name, self._version, partial))
            return take_download(partial.replace(path))

    def _with_retries(self, call: Callable[[], Any]) -> Any:
        """Retry temporary failures; translate the others into errors with a next action."""
        damaged = 0

        def worth_trying(error: Exception) -> bool:
            nonlocal damaged
            if self._hub.is_damage(error):
                damaged += 1
                return damaged < 3
            return not isinstance(error, CelebditError) and self._hub.is_temporary(error)

        try:
            return retry(
                call,
                what=f"download {self._owner}/{self._name} from Kaggle",
                log=_log,
                policy=RetryPolicy(deadline_s=self._deadline_s),
                is_temporary=worth_trying,
            )
        except CelebditError:
            raise
        except Exception as error:
            raise self._hub.meaning(error, f"{self._owner}/{self._name}") from error


class _Hub:
    """The parts of kagglehub that are used, imported on first use."""

    def __init__(self) -> None:
        try:
            with _silence():
                self._clients = import_module("kagglehub.clients")
                self._config = import_module("kagglehub.config")
                self._exceptions = import_module("kagglehub.exceptions")
                self._handle = import_module("kagglehub.handle")
                self._types = import_module("kagglesdk.datasets.types.dataset_api_service")
                self._requests = import_module("requests.exceptions")
        except ImportError as error:
            raise BadInput(f"kaggle:// sources need the package kagglehub ({error.name} is not installed)", hint="make extras") from error

    def current_version(self, owner: str, name: str) -> int:
        """Ask Kaggle for the newest version."""
        request = self._types.ApiGetDatasetRequest()
        request.owner_slug, request.dataset_slug = owner, name
        with _silence(), self._clients.build_kaggle_client() as client:
            return int(client.datasets.dataset_api_client.get_dataset(request).current_version_number)

    def download(self, owner: str, name: str, version: int, target: Path) -> None:
        """Download the archive to `target`, continuing a partial file."""
        request = self._types.ApiDownloadDatasetRequest()
        request.owner_slug, request.dataset_slug, request.dataset_version_number = owner, name, version
        handle = self._handle.DatasetHandle(owner=owner, dataset=name, version=version)
        with _silence(), self._clients.build_kaggle_client() as client:
            response = client.datasets.dataset_api_client.download_dataset(request)
            expected_bytes = int(response.headers.get("Content-Length") or 0)
            if target.exists() and expected_bytes and target.stat().st_size > expected_bytes:
                target.unlink()  # left by another archive
            self._clients.download_file(response, str(target), handle)
        if expected_bytes and target.stat().st_size != expected_bytes:
            raise ConnectionError(f"{target.stat().st_size} of {expected_bytes} bytes arrived")

    def is_damage(self, error: Exception) -> bool:
        return isinstance(error, self._exceptions.DataCorruptionError)

    def is_temporary(self, error: Exception) -> bool:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return bool(status >= 500 or status in (408, 416, 429))
        return isinstance(
            error,
            ConnectionError | TimeoutError | self._requests.ConnectionError | self._requests.Timeout | self._requests.ChunkedEncodingError,
        )

    def meaning(self, error: Exception, label: str) -> CelebditError:
        """Translate `error` into one of our errors."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            with _silence():
                known = self._config.get_kaggle_credentials() is not None
            if not known:
                halves = [name for name in ("KAGGLE_USERNAME", "KAGGLE_KEY") if os.environ.get(name)]
                set_are = f"only {halves[0]} is set" if halves else "none are set"
                return BadInput(f"Kaggle asks for credentials for {label}, and {set_are}", hint=_CREDENTIALS_HINT)
            return BadInput(f"Kaggle refuses {label} to these credentials ({status})", hint=_CREDENTIALS_HINT)
        if status == 404:
            return BadInput(f"Kaggle has no dataset {label}, or not this version", hint="check owner, name and version in data.source")
        if self.is_damage(error):
            return DataRefused(
                f"the archive of {label} arrives corrupt: its digest is not the one that Kaggle publishes", hint="run it again later"
            )
        if self.is_temporary(error):
            reason = f"status {status}" if status is not None else type(error).__name__
            return TemporaryFailure(f"Kaggle failed for {label} (last: {reason})", hint="run it again: the partial download is kept")
        return BadInput(f"kagglehub cannot fetch {label}: {type(error).__name__}: {first_line(error)}")


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress kagglehub's output: stdout carries our one JSON object only."""
    os.environ.setdefault("KAGGLEHUB_VERBOSITY", "error")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def open_kaggle(source: str, image_px: int, reach: Reach | None) -> Source | None:
    """Open a dataset on Kaggle; without `reach` only the form of the URI, and that kagglehub is installed, are checked."""
    dataset = KaggleSource(source.partition("://")[2], reach)
    return dataset if reach is not None else None


KIND = SourceKind(
    ("kaggle",), "kaggle://owner/name", open_kaggle, names_published_dataset=True, secret=KAGGLE_SECRET, credentials=KAGGLE_KEYS
)
