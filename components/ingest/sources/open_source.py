"""Which source a URI names.

Promises: opening checks that the source exists and is of a known kind, as far as that is cheap; reading it is the source's business.
Whether somebody must accept its terms first is also answered here, before anything is read.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from components.errors import BadInput
from components.ingest.candidates import Candidate, Source
from components.ingest.config import DataConfig
from components.ingest.limits import Budget
from components.ingest.sources.archives import open_archive
from components.ingest.sources.folders import FolderSource
from components.ingest.sources.kaggle import KaggleSource
from components.ingest.sources.remote import Reach, open_s3
from components.ingest.sources.synthetic import encode_face
from components.storage import StoreUri

_NEEDS_CONSENT = ("celeba",)
_KINDS = (
    "a path to a zip, tar or folder, s3://bucket/archive.zip, s3://bucket/folder/, kaggle://owner/name or synthetic://?count=2000&seed=0"
)
_MOST_DRAWN, _LARGEST_PX = 10**7, 2048


def open_source(config: DataConfig, reach: Reach | None = None) -> Source | None:
    """Open what `config.source` names; without `reach`, one that is elsewhere is only checked for its form, and None returned.

    Raises:
        BadInput: if it does not exist, cannot be read or is of no known kind. DataRefused: if it is damaged.
    """
    parts = urlsplit(config.source)
    if parts.scheme == "synthetic":
        return _synthetic(parts.query, config.image_px)
    if parts.scheme == "kaggle":
        source = KaggleSource(config.source.removeprefix("kaggle://"), reach)
        return source if reach is not None else None
    if parts.scheme == "s3":
        uri = StoreUri.parse_source(config.source)
        return open_s3(uri, reach) if reach is not None else None
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return _local(Path(unquote(parts.path)))
    if "://" not in config.source:
        return _local(Path(config.source).expanduser())
    raise BadInput(f"data.source has the unknown scheme {parts.scheme!r}", hint=f"give {_KINDS}")


def require_consent(config: DataConfig) -> None:
    """Refuse to go on if the data's terms ask for somebody's consent and nobody gave it.

    Raises:
        BadInput: naming the licence and how to accept it.
    """
    asked = f"{config.licence} {config.source if config.source.startswith('kaggle://') else ''}".lower()
    if config.licence_accepted_by is None and any(word in asked for word in _NEEDS_CONSENT):
        named = f"the licence {config.licence!r}" if config.licence != "unspecified" else f"the licence of {config.source}"
        raise BadInput(
            f"{named} must be accepted before its images are ingested",
            hint="read it, then set data.licence_accepted_by=NAME or pass --accept-license NAME",
        )


def _local(path: Path) -> Source:
    try:
        if not path.exists():
            raise BadInput(f"data.source {path} does not exist", hint=f"give {_KINDS}")
        return FolderSource(path) if path.is_dir() else open_archive(path, str(path))
    except OSError as error:
        raise BadInput(f"data.source {path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class SyntheticSource:
    """Drawn faces."""

    count_images: int
    seed: int
    image_px: int

    def fingerprint(self) -> str:
        return hashlib.sha256(f"synthetic 1 {self.count_images} {self.seed} {self.image_px}".encode()).hexdigest()

    def count(self) -> int | None:
        return self.count_images

    def described(self) -> str:
        return f"synthetic://?count={self.count_images}&seed={self.seed}&size={self.image_px}"

    def archive(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        for index in range(self.count_images):
            yield Candidate(f"{index:05d}.jpg", encode_face(self.seed, index, self.image_px))


def _synthetic(query: str, image_px: int) -> SyntheticSource:
    given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := sorted(set(given) - {"count", "seed", "size"}):
        raise BadInput(f"data.source synthetic:// does not know {', '.join(unknown)}", hint="write synthetic://?count=2000&seed=0&size=256")
    try:
        count, seed, size = int(given.get("count", "2000")), int(given.get("seed", "0")), int(given.get("size", str(image_px)))
    except ValueError as error:
        raise BadInput(f"data.source synthetic:// takes whole numbers: {error}") from error
    for name, value, least, most in (("count", count, 1, _MOST_DRAWN), ("seed", seed, 0, 2**63), ("size", size, 8, _LARGEST_PX)):
        if not least <= value <= most:
            raise BadInput(f"data.source synthetic:// takes a {name} from {least} to {most} (given: {value})")
    return SyntheticSource(count_images=count, seed=seed, image_px=size)
