"""Process that reads the images of a parquet file with little memory and without credentials.

    python -m components.ingest.sources.parquet_reader FILE '{"max_total_bytes": ..., ...}' MAX_MEMORY_BYTES

FILE is the number of an open file; standard output gets a frame (`../wire.py`) per row, and a last one that says how it ended.
`parquets.py` starts it.

Promises: one page and a few rows are in memory at a time; nothing but the open file is read (`system/confinement.py`). The column is the
only struct with `bytes`, or else the only binary one; of several it is the one that is named like images, or whose first row is an image.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import first_line, shorten
from components.ingest.image_formats import HEAD_BYTES, image_format
from components.ingest.limits import Budget
from components.ingest.sources.reader_process import Outcome
from components.ingest.verdicts import Rejected
from components.ingest.wire import write_frame
from components.system.confinement import confine, limit_memory
from components.system.process import die_with_parent

_ROWS = 4
_BUFFER_BYTES = 2**20
_NAMES = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "photo", "picture", "pixel_values")
_COLUMNS_SHOWN = 8


class _Unusable(Exception):
    """The file has no column of images, or several."""


def main() -> None:
    """Read the file that the command line names."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the answers
    file = os.fdopen(int(sys.argv[1]), "rb")
    budget = Budget(**json.loads(sys.argv[2]))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve addresses, which the limit counts
    limit_memory(int(sys.argv[3]))
    confine()
    outcome, text = _send_rows(file, budget, answers)
    write_frame(answers, {"outcome": outcome, "text": text}, [])


def _send_rows(file: IO[bytes], budget: Budget, answers: IO[bytes]) -> tuple[Outcome, str]:
    total_bytes = 0
    try:
        for number, (name, data) in enumerate(_rows(file, budget), start=1):
            total_bytes += len(data or b"")
            if number > budget.max_entries:
                return "entries", ""
            if total_bytes > budget.max_total_bytes:
                return "bytes", ""
            missing = f"the row {'names a file and ' if '-' in name else ''}has no bytes of an image"
            refused = Rejected("unreadable", missing) if data is None else None
            write_frame(answers, {"name": name, "refused": [refused.code, refused.detail] if refused else None}, [data or b""])
    except _Unusable as error:
        return "unusable", str(error)
    except MemoryError:
        return "memory", ""
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        return "corrupt", first_line(error, max_characters=300)
    return "end", ""


def _rows(file: IO[bytes], budget: Budget) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the bytes of each row's image, at most one byte more than the budget has for an image."""
    parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    column = _image_column(parquet)
    row = 0
    for batch in _batches(parquet, [column]):
        for value in batch.column(0):
            path, data = _image(value, limit=budget.max_image_bytes + 1)
            yield f"{row:07d}{'-' if path else ''}{path}", data
            row += 1


def _batches(parquet: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return parquet.iter_batches(batch_size=_ROWS, columns=columns, use_threads=False)


def _image(value: pa.Scalar, *, limit: int) -> tuple[str, bytes | None]:
    """Return the file name that a value gives, if any, and the bytes of its image."""
    path = ""
    if isinstance(value, pa.StructScalar):
        if not value.is_valid:
            return "", None
        path = str(value["path"].as_py() or "").replace("\\", "/").rpartition("/")[2] if "path" in value else ""
        value = value["bytes"]
    buffer = value.as_buffer() if value.is_valid else None
    return path, None if buffer is None else bytes(memoryview(buffer)[:limit])


def _image_column(parquet: pq.ParquetFile) -> str:
    """Return the name of the column of images.

    Raises:
        _Unusable: if there is none, or one of several cannot be told from the others.
    """
    schema = parquet.schema_arrow
    names = [field.name for field in schema if _holds_bytes(field.type)] or [field.name for field in schema if _is_binary(field.type)]
    if not names:
        columns = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:_COLUMNS_SHOWN])
        raise _Unusable(f"has no column of image bytes: {shorten(columns, max_characters=300)}")
    if len(names) > 1:
        names = [name for name in names if name.lower() in _NAMES][:1] or [name for name in names if _begins_with_image(parquet, name)]
    if len(names) != 1:
        raise _Unusable(
            f"has several columns that may be the images, or none that begins with one: {shorten(', '.join(names), max_characters=300)}"
        )
    return names[0]


def _begins_with_image(parquet: pq.ParquetFile, column: str) -> bool:
    for batch in _batches(parquet, [column]):
        for value in batch.column(0):
            data = _image(value, limit=HEAD_BYTES)[1]
            if data is not None:
                return image_format(data) is not None
    return False


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column has the type of the hub's images: a struct with `bytes`, and often `path`."""
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in _fields(kind))


def _fields(kind: Any) -> list[pa.Field]:
    return [kind.field(index) for index in range(kind.num_fields)]


if __name__ == "__main__":
    main()
