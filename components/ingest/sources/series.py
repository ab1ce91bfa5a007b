"""Several files of images that are one source: a folder of WebDataset tars, or of parquet files as the Hugging Face hub lays them out.

Promises: the files are read one after another, in the order of their names, each as its own kind of source is; what lies beside them gets
a verdict.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from components.ingest.candidates import Candidate, Source, is_image_name, left_out_by_name, too_many_bytes, too_many_entries
from components.ingest.limits import Budget
from components.ingest.sources.parquets import PARQUET_SUFFIXES
from components.ingest.sources.streamed import StreamedSource
from components.ingest.sources.tars import TAR_SUFFIXES
from components.ingest.verdicts import Rejected

_PART_SUFFIXES = (*TAR_SUFFIXES, *PARQUET_SUFFIXES)
_BESIDE = Rejected("ignored", "beside the archives that are read")


@dataclass(frozen=True)
class Part:
    """One file of a series: its name in the source, and how it is read."""

    name: str
    source: Source


def part_names(files: Iterable[tuple[str, int]]) -> list[str]:
    """Return which of `files`, pairs of a name and a size in bytes, are read as a series: tars and parquet files, if they are most of it.

    A picture in the description of a dataset does not make its parquet files worthless, nor a table of labels a folder of images.
    """
    part_bytes = image_bytes = 0
    parts = []
    for name, size_bytes in files:
        if is_image_name(name):
            image_bytes += size_bytes
        elif is_part_name(name):
            part_bytes += size_bytes
            parts.append(name)
    return sorted(parts) if part_bytes > image_bytes else []


def is_part_name(name: str) -> bool:
    """Return whether a file may be part of a series, by its name; not one that is hidden or left by a program."""
    left_out = left_out_by_name(name)
    visible = left_out is None or left_out.code == "nested_archive" or name.lower().endswith(PARQUET_SUFFIXES)
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return visible and not hidden and name.lower().endswith(_PART_SUFFIXES)


class SeriesSource(StreamedSource):
    """The entries of several files."""

    def __init__(self, label: str, parts: Sequence[Part], *, beside: Sequence[str] = ()) -> None:
        super().__init__(label)
        self._parts = parts
        self._beside = beside

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"series 1")
        for part in self._parts:
            digest.update(f"{part.name}\0{part.source.fingerprint()}\n".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        for part in self._parts:
            part.source.require_unchanged()

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        total_bytes = 0
        for number, candidate in enumerate(self._all_candidates(budget), start=1):
            total_bytes += len(candidate.data)
            if number > budget.max_entries:
                raise too_many_entries(self._label, budget)
            if total_bytes > budget.max_total_bytes:
                raise too_many_bytes(self._label, budget)
            yield candidate

    def _all_candidates(self, budget: Budget) -> Iterator[Candidate]:
        for name in self._beside:
            yield Candidate(name, b"", left_out_by_name(name) or _BESIDE)
        for part in self._parts:
            for candidate in part.source.candidates(budget):
                yield candidate._replace(name=f"{part.name}/{candidate.name}")
