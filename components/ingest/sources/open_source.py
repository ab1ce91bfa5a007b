"""Open the source that `data.source` names, and check whether its licence must be accepted first.

`KINDS` is the table of all sources: a new one is a module with a `SourceKind` and an entry here.
"""

from components.errors import BadInput
from components.ingest.candidates import Source
from components.ingest.config import DataConfig
from components.ingest.sources import huggingface, kaggle, paths, remote, stored_dataset, synthetic_source
from components.ingest.sources.kinds import Reach, SourceKind
from components.ingest.sources.stored_dataset import StoredDatasetSource

KINDS: tuple[SourceKind, ...] = (paths.KIND, remote.KIND, kaggle.KIND, huggingface.KIND, stored_dataset.KIND, synthetic_source.KIND)
_BY_SCHEME = {scheme: kind for kind in KINDS for scheme in kind.schemes}
_LICENCES_TO_ACCEPT = ("celeba",)


def source_examples() -> str:
    """Return how to write each kind of source, for help texts and hints."""
    return " or ".join(kind.example for kind in KINDS)


def kind_of(source: str) -> SourceKind:
    """Return the kind of source that a URI or path names.

    Raises:
        BadInput: if its scheme is unknown.
    """
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme not in _BY_SCHEME:
        raise BadInput(f"data.source has the unknown scheme {scheme!r}", hint=f"give {source_examples()}")
    return _BY_SCHEME[scheme]


def open_source(config: DataConfig, reach: Reach | None = None) -> Source | None:
    """Open what `config.source` names; without `reach`, a remote source is only checked for its form, and None is returned.

    Raises:
        BadInput: if it does not exist, cannot be read or is of an unknown kind. DataRefused: if it is damaged.
    """
    return kind_of(config.source).open(config.source, config.image_px, reach)


def with_terms_of(source: Source, config: DataConfig) -> DataConfig:
    """Return `config` with the terms that a stored dataset already has; other sources have none."""
    return source.with_terms(config) if isinstance(source, StoredDatasetSource) else config


def require_consent(config: DataConfig) -> None:
    """Refuse to continue if the licence of the images must be accepted and was not.

    Raises:
        BadInput: naming the licence and how to accept it.
    """
    terms = f"{config.licence} {config.source if kind_of(config.source).names_published_dataset else ''}".lower()
    if config.licence_accepted_by is None and any(word in terms for word in _LICENCES_TO_ACCEPT):
        licence = f"the licence {config.licence!r}" if config.licence != "unspecified" else f"the licence of {config.source}"
        raise BadInput(
            f"{licence} must be accepted before its images are ingested",
            hint="read it, then set data.licence_accepted_by=NAME or pass --accept-license NAME",
        )
