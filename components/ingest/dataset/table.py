"""`manifest.parquet`: one row per candidate, accepted or not.

Promises: rows are in the order of digest and name, rejected ones last; memory does not grow with their number. `width` and `height` are
those of the source image; `size_bytes`, `shard` and `offset` those of the stored bytes.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.ingest.dataset.ledger import Ledger

_PAGE = 4_000
_COLOURS = [f"{what}_{channel}" for what in ("mean", "std") for channel in "rgb"]
_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "sha256": pa.string(),
    "source_name": pa.string(),
    "verdict": pa.string(),
    "accepted": pa.bool_(),
    "detail": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_format": pa.string(),
    "format": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size_bytes": pa.int64(),
    "split": pa.string(),
    **{name: pa.float64() for name in _COLOURS},
}
_NUMPY = {pa.bool_(): np.bool_, pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}
_OF_SEEN = "s.source_name, s.verdict, s.accepted, s.detail, s.width, s.height, s.source_format"
_OF_IMAGE = f"i.extension, i.shard, i.offset, i.size_bytes, i.split, {', '.join(f'i.{name}' for name in _COLOURS)}"
_ACCEPTED = f"""
SELECT substr(i.sha256, 1, 20), i.sha256, {_OF_SEEN}, {_OF_IMAGE} FROM images i JOIN seen s USING (n) ORDER BY i.sha256
"""  # noqa: S608 - the names are ours
_REJECTED = f"""
SELECT substr(s.sha256, 1, 20), s.sha256, {_OF_SEEN}, {", ".join(["NULL"] * (5 + len(_COLOURS)))} FROM seen s
WHERE NOT s.accepted ORDER BY s.sha256 IS NULL, s.sha256, s.source_name, s.n
"""  # noqa: S608 - the names are ours


def write_table(ledger: Ledger, path: Path) -> None:
    """Write the table of all candidates in `ledger`."""
    schema = pa.schema(list(_COLUMNS.items()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in chain(ledger.pages(_ACCEPTED, _PAGE), ledger.pages(_REJECTED, _PAGE)):
            columns = zip(zip(*rows, strict=True), _COLUMNS.values(), strict=True)
            writer.write_table(pa.Table.from_arrays([_column(values, kind) for values, kind in columns], schema=schema))


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return values, some of them None, as an Arrow column.

    `pyarrow.array` does that too, but imports pandas for it, which takes longer than the rest of the table and 60 MB.
    """
    known = np.array([value is not None for value in values]) if None in values else np.ones(len(values), np.bool_)
    buffers = [pa.py_buffer(np.packbits(known, bitorder="little"))]
    if kind == pa.string():
        texts = [b"" if value is None else value.encode() for value in values]
        buffers.append(pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32)))
        buffers.append(pa.py_buffer(b"".join(texts)))
    else:
        numbers: np.ndarray = np.array([0 if value is None else value for value in values], _NUMPY[kind])
        buffers.append(pa.py_buffer(np.packbits(numbers, bitorder="little") if kind == pa.bool_() else numbers))
    return pa.Array.from_buffers(kind, len(values), buffers)
