"""Parquet files of images: the column is found by its type, memory is bounded, and the process that reads them is confined."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celebdit_testing.corpus import PX
from celebdit_testing.processes import processes_below

from components.errors import DataRefused
from components.ingest.candidates import Candidate, Source
from components.ingest.limits import Budget
from components.ingest.sources import parquets
from components.ingest.sources.paths import open_path
from components.ingest.sources.synthetic import encode_face
from components.system.confinement import is_confined

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)
FACES = [encode_face(0, index, PX) for index in range(6)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
READER = "components.ingest.sources.parquet_reader"


def written(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def opened(path: Path) -> Source:
    return open_path(str(path), PX, None)


def read(path: Path, budget: Budget = BUDGET) -> list[Candidate]:
    return list(opened(path).candidates(budget))


COLUMNS: dict[str, dict[str, Any]] = {
    "the hub's": {"label": pa.array(range(6)), "image": pa.array([{"bytes": data, "path": None} for data in FACES], IMAGE)},
    "bytes before path": {"pic": pa.array([{"path": "a.jpg", "bytes": data} for data in FACES])},
    "large binary": {"id": pa.array(["x"] * 6), "content": pa.array(FACES, pa.large_binary())},
    "named among several": {"thumb": pa.array(FACES), "image": pa.array(FACES), "mask": pa.array([b"\x93NUMPY"] * 6)},
    "told by its first row": {"embedding": pa.array([b"\0\1"] * 6), "data": pa.array(FACES)},
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_column_of_images_is_found(tmp_path: Path, kind: str) -> None:
    candidates = read(written(tmp_path / "faces.parquet", COLUMNS[kind], row_group_size=4))
    assert [candidate.data for candidate in candidates] == FACES
    assert all(candidate.refused is None for candidate in candidates)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_every_compression_is_read_by_the_confined_process(tmp_path: Path, compression: str) -> None:
    path = written(tmp_path / "faces.parquet", {"image": pa.array(FACES)}, compression=compression)
    assert [candidate.data for candidate in read(path)] == FACES


def test_rows_are_named_by_number_and_file_and_rows_without_bytes_get_a_verdict(tmp_path: Path) -> None:
    rows = [{"bytes": FACES[0], "path": "deep\\er/../a.jpg"}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": b"no image", "path": None}]
    first, without, nothing, text = read(written(tmp_path / "faces.parquet", {"image": pa.array(rows, IMAGE)}))
    assert (first.name, first.data) == ("0000000-a.jpg", FACES[0])
    assert [candidate.refused and candidate.refused.code for candidate in (without, nothing)] == ["unreadable", "unreadable"]
    assert (text.refused, text.data) == (None, b"no image")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": pa.array(range(6)), "path": pa.array(["a.jpg"] * 6)}, r"has no column of image bytes: label \(int64\), path \(string\)"),
        ({"source": pa.array(FACES), "target": pa.array(FACES)}, "several columns that may be the images, .*: source, target"),
        ({"n" * 500: pa.array(range(6))}, r"has no column of image bytes: n{300}\.\.\. \(508 characters\)$"),
        ({name * 200: pa.array(FACES) for name in "st"}, r": s{200}, t{98}\.\.\. \(402 characters\)$"),
    ],
)
def test_a_file_without_one_column_of_images_says_which_it_has(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataRefused, match=message):
        read(written(tmp_path / "faces.parquet", columns))


def test_budgets_hold(tmp_path: Path) -> None:
    path = written(tmp_path / "faces.parquet", {"image": pa.array(FACES)})
    assert {len(candidate.data) for candidate in read(path, Budget(100, 2**32, 100, 200))} == {101}
    with pytest.raises(DataRefused, match="more than 5 entries"):
        read(path, Budget(10**6, 2**32, 5, 200))
    with pytest.raises(DataRefused, match="unpacks to more than 2000 bytes"):
        read(path, Budget(10**6, 2000, 100, 200))


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_damage_is_an_error_of_the_source(tmp_path: Path, at: float) -> None:
    data = bytearray(written(tmp_path / "faces.parquet", {"image": pa.array(FACES)}, compression="zstd").read_bytes())
    (tmp_path / "cut.parquet").write_bytes(data[: int(len(data) * at)])
    with pytest.raises(DataRefused, match="is corrupt"):
        read(tmp_path / "cut.parquet")


def test_a_page_that_takes_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquets, "_MEMORY_BYTES", 24 * 2**20)
    path = written(tmp_path / "bomb.parquet", {"image": pa.array([bytes(60 * 2**20)])}, compression="zstd")
    assert path.stat().st_size < 2**20
    with pytest.raises(DataRefused, match=r"MiB of memory|is corrupt"):
        read(path)


def test_the_reader_has_no_secret_and_cannot_open_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-in-a-reader")
    path = written(tmp_path / "faces.parquet", {"image": pa.array([os.urandom(2**16) for _ in range(200)])})
    candidates = opened(path).candidates(BUDGET)
    next(candidates)
    (reader,) = processes_below(os.getpid(), running=READER)
    assert b"canary-in-a-reader" not in Path(f"/proc/{reader.pid}/environ").read_bytes()
    assert is_confined(reader.pid)
    candidates.close()  # type: ignore[attr-defined]
    assert not reader.is_running()
