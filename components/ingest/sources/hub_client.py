"""The parts of huggingface-hub that are used, imported on first use, and what its errors mean.

Promises: nothing is written but the file that is asked for, in the folder that is given; names from the hub are never paths of ours.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from components.errors import BadInput, CelebditError, DataRefused, TemporaryFailure, first_line

_TERMS_HINT = (
    "accept the dataset's terms on its page, make a token of the same account at https://huggingface.co/settings/tokens, "
    "and set HF_TOKEN to it"
)


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset on the hub: its digest is the sha256 of a large file, or git's digest of a small one."""

    name: str
    size_bytes: int
    digest: str
    is_large: bool

    def is_intact(self, path: Path) -> bool:
        """Return whether the file at `path` has the listed size and digest."""
        if path.stat().st_size != self.size_bytes:
            return False
        with path.open("rb") as file:
            if self.is_large:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.digest
            blob = hashlib.sha1(f"blob {self.size_bytes}\0".encode(), usedforsecurity=False)
            while chunk := file.read(2**20):
                blob.update(chunk)
        return blob.hexdigest() == self.digest


class HubClient:
    """Reads one dataset of the hub, or of the server that HF_ENDPOINT names."""

    def __init__(self, name: str) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            self._hub = import_module("huggingface_hub")
            self._errors = import_module("huggingface_hub.errors")
        except ImportError as error:
            raise BadInput(
                f"hf:// sources need the package huggingface-hub ({error.name} is not installed)",
                hint="make extras",
            ) from error
        self._name = name

    @property
    def _api(self) -> Any:
        return self._hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"), library_name="celebdit")

    def commit_of(self, revision: str | None) -> str:
        """Return the commit that a branch, a tag or a commit names; by default that of the main branch."""
        return str(self._api.dataset_info(self._name, revision=revision).sha)

    def files_of(self, commit: str) -> list[HubFile]:
        """Return all files of a commit."""
        return list(self._list(commit))

    def _list(self, commit: str) -> Iterator[HubFile]:
        for entry in self._api.list_repo_tree(self._name, recursive=True, revision=commit, repo_type="dataset"):
            if hasattr(entry, "blob_id"):  # not a folder
                digest = entry.blob_id if entry.lfs is None else entry.lfs.sha256
                yield HubFile(entry.path, entry.size, digest, is_large=entry.lfs is not None)

    def download(self, file: HubFile, commit: str, folder: Path) -> Path:
        """Return the path below `folder` that a file was downloaded to."""
        if PurePosixPath(file.name).is_absolute() or ".." in file.name.replace("\\", "/").split("/"):
            raise DataRefused(
                f"{self._name} has a file with the unsafe name {file.name!r}", hint="name the files that you want in data.source"
            )
        path = self._api.hf_hub_download(self._name, file.name, repo_type="dataset", revision=commit, local_dir=folder)
        return Path(path)

    def is_temporary(self, error: Exception) -> bool:
        """Return whether the same call may succeed later."""
        if isinstance(error, CelebditError):
            return False
        status = _status(error)
        if status is not None:
            return status >= 500 or status in (408, 416, 429)
        return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0].startswith(("httpx", "httpcore"))

    def meaning(self, error: Exception) -> CelebditError:
        """Translate `error` into one of our errors."""
        status, errors = _status(error), self._errors
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return BadInput(f"the Hugging Face hub gives {self._name} only to those who accepted its terms", hint=_TERMS_HINT)
        if isinstance(error, errors.RevisionNotFoundError):
            return BadInput(f"the Hugging Face hub has no such revision of {self._name}", hint="check the part after @ in data.source")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            missing = "HF_TOKEN is not set" if not os.environ.get("HF_TOKEN") else "or not for this HF_TOKEN"
            return BadInput(f"the Hugging Face hub has no dataset {self._name}, or it is private ({missing})", hint=_TERMS_HINT)
        if self.is_temporary(error):
            reason = f"status {status}" if status is not None else type(error).__name__
            return TemporaryFailure(f"the Hugging Face hub failed for {self._name} (last: {reason})", hint="run it again later")
        return BadInput(f"huggingface-hub cannot read {self._name}: {type(error).__name__}: {first_line(error)}")


def _status(error: Exception) -> int | None:
    with suppress(AttributeError, TypeError, ValueError):
        return int(error.response.status_code)  # type: ignore[attr-defined]
    return None
