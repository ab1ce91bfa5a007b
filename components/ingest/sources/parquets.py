"""Images in a parquet file, a row each, as the Hugging Face hub keeps them.

Promises: the file is read by a process of its own (`parquet_reader.py`) with limited memory and without credentials; the column of images
is found by its type.
"""

from pathlib import Path

from components.ingest.limits import Budget
from components.ingest.sources.reader_process import EntrySource, Reader

PARQUET_SUFFIXES = (".parquet",)
_MAGIC = b"PAR1"
_MEMORY_BYTES = 768 * 2**20
"""A page of the file is read at once, and writers put up to 1024 rows on one."""
_COPIES = 6
"""How often the bytes of one image may be in the reader's memory."""
_PATIENCE_S = 60.0


def is_parquet(path: Path) -> bool:
    """Return whether a file is a parquet file, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class ParquetSource(EntrySource):
    """The rows of a parquet file."""

    def reader(self, budget: Budget) -> Reader:
        return Reader("components.ingest.sources.parquet_reader", _MEMORY_BYTES + _COPIES * budget.max_image_bytes, _PATIENCE_S)
