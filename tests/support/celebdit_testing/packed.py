"""Images packed as datasets are: a parquet file, a tar."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_of(faces: list[bytes]) -> bytes:
    table = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([{"bytes": data, "path": None} for data in faces])}), table)
    return table.getvalue()


def tar_of(faces: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in faces.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()
