"""`manifest.parquet`: one row per candidate that was seen, accepted or not.

Promises: rows are in the order of digest and name, rejected ones last; memory does not grow with their number. `width` and `height` are
those of the image as it came, `size_bytes`, `shard` and `offset` those of the bytes as they are stored.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.ingest.ledger import Ledger

_PAGE = 10_000
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
_QUERY = f"""
SELECT substr(s.sha256, 1, 20), s.sha256, s.source_name, s.verdict, s.accepted, s.detail, s.width, s.height, s.source_format,
       i.extension, i.shard, i.offset, i.size_bytes, i.split, {", ".join(f"i.{name}" for name in _COLOURS)}
FROM seen s LEFT JOIN images i ON s.accepted AND i.sha256 = s.sha256
ORDER BY s.sha256 IS NULL, NOT s.accepted, s.sha256, s.source_name, s.n
"""  # noqa: S608 - the names are ours


def write_table(ledger: Ledger, path: Path) -> None:
    """Write the table of everything in `ledger`."""
    schema = pa.schema(list(_COLUMNS.items()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in ledger.pages(_QUERY, _PAGE):
            frame = pd.DataFrame.from_records(rows, columns=list(_COLUMNS)).astype({"accepted": bool})
            writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))
