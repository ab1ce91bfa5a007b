"""What sources that are read from front to back have in common: they do not know how many images they hold, and give bytes, not extents."""

from pathlib import Path


class StreamedSource:
    """Base of sources whose candidates come with their bytes; `label` is how the user named them."""

    def __init__(self, label: str) -> None:
        self._label = label

    def count(self) -> int | None:
        return None

    def provenance(self) -> str:
        return self._label

    def archive_path(self) -> Path | None:
        return None
