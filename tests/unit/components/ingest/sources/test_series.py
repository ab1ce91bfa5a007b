"""Folders of tars and of parquet files, and folders of links like the Hugging Face hub's cache."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celebdit_testing.corpus import PX

from components.errors import BadInput, DataRefused
from components.ingest.limits import Budget
from components.ingest.sources.paths import open_path
from components.ingest.sources.series import part_names
from components.ingest.sources.synthetic import encode_face

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**32, max_entries=10**6, max_ratio=200)
REVISION = "0123456789abcdef0123456789abcdef01234567"


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in images.items():
            for entry, content in ((f"{name}.jpg", data), (f"{name}.json", json.dumps({"key": name}).encode()), (f"{name}.cls", b"3")):
                info = tarfile.TarInfo(entry)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def read(path: Path, budget: Budget = BUDGET) -> dict[str, bytes | str]:
    """The candidates by name: their bytes, or the code of their verdict."""
    candidates = open_path(str(path), PX, None).candidates(budget)
    return {candidate.name: candidate.refused.code if candidate.refused else candidate.data for candidate in candidates}


def test_a_folder_of_webdataset_tars_is_one_source(tmp_path: Path) -> None:
    for shard in range(3):
        suffix = ".tar.gz" if shard == 2 else ".tar"
        images = {f"{index:06d}": encode_face(0, shard * 4 + index, PX) for index in range(4)}
        write_tar(tmp_path / "train" / f"shard-{shard:05d}{suffix}", images)
    (tmp_path / "README.md").write_text("# Faces")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.tar").write_bytes(b"x" * 10**6)
    found = read(tmp_path)
    assert [data for data in found.values() if isinstance(data, bytes)] == [encode_face(0, index, PX) for index in range(12)]
    assert found["train/shard-00001.tar/000002.jpg"] == encode_face(0, 6, PX)
    assert {code for code in found.values() if isinstance(code, str)} == {"ignored"}
    assert found["README.md"] == "ignored"


def test_a_folder_of_parquet_files_as_the_hub_lays_them_out_is_one_source(tmp_path: Path) -> None:
    for part in range(2):
        path = tmp_path / "data" / f"train-{part:05d}-of-00002.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"image": pa.array([{"bytes": encode_face(0, part * 3 + row, PX), "path": None} for row in range(3)])}), path
        )
    (tmp_path / "README.md").write_text("---\ndataset_info: {}")
    (tmp_path / "thumbnail.jpg").write_bytes(encode_face(1, 0, PX)[:300])
    found = read(tmp_path)
    assert [data for data in found.values() if isinstance(data, bytes)] == [encode_face(0, index, PX) for index in range(6)]
    assert found["thumbnail.jpg"] == "ignored"


def test_a_table_beside_images_does_not_make_them_a_series(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(encode_face(0, index, PX))
    pq.write_table(pa.table({"file_name": ["0.jpg"], "smile": [1]}), tmp_path / "metadata.parquet")
    assert sum(isinstance(data, bytes) for data in read(tmp_path).values()) == 3
    assert part_names([("a.jpg", 100), ("b.parquet", 99)]) == []
    assert part_names([("b.parquet", 101), ("a.jpg", 100), ("@eaDir/c.tar", 500), (".git/d.tar", 500)]) == ["b.parquet"]


def test_a_series_is_fingerprinted_bounded_and_refused_if_a_part_is_damaged(tmp_path: Path) -> None:
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", {f"{index}": encode_face(0, shard * 4 + index, PX) for index in range(4)})
    before = open_path(str(tmp_path), PX, None).fingerprint()
    assert open_path(str(tmp_path), PX, None).fingerprint() == before
    with pytest.raises(DataRefused, match="more than 20 entries"):
        read(tmp_path, Budget(10**6, 2**32, 20, 200))
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:3000])
    assert open_path(str(tmp_path), PX, None).fingerprint() != before
    with pytest.raises(DataRefused, match=r"1\.tar is corrupt"):
        read(tmp_path)


def hub_cache(folder: Path, files: dict[str, bytes], *, revision: str = REVISION) -> Path:
    """The cache of a dataset as `huggingface_hub.snapshot_download` leaves it."""
    cache = folder / "datasets--owner--faces"
    for name, data in files.items():
        blob, link = cache / "blobs" / hashlib.sha256(data).hexdigest(), cache / "snapshots" / revision / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(Path(*[".."] * (len(Path(name).parts) + 1)) / "blobs" / blob.name)
    (cache / "refs").mkdir(exist_ok=True)
    (cache / "refs" / "main").write_text(revision)
    return cache


FILES = {f"data/{index}.jpg": encode_face(0, index, PX) for index in range(4)} | {"README.md": b"# Faces"}


@pytest.mark.parametrize("below", ["", f"snapshots/{REVISION}"])
def test_the_hubs_cache_of_links_is_read_once(tmp_path: Path, below: str) -> None:
    found = read(hub_cache(tmp_path / ".cache" / "huggingface" / "hub", FILES) / below)
    assert found == {name: data if name.endswith("jpg") else "ignored" for name, data in FILES.items()}


def test_of_several_snapshots_that_of_main_is_read(tmp_path: Path) -> None:
    hub_cache(tmp_path, {"old.jpg": encode_face(1, 0, PX)}, revision="f" * 40)
    cache = hub_cache(tmp_path, FILES)
    assert "old.jpg" not in read(cache)
    (cache / "refs" / "main").unlink()
    with pytest.raises(BadInput, match="has 2 snapshots"):
        read(cache)


def test_a_cache_of_parquet_files_is_a_series(tmp_path: Path) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([encode_face(0, 0, PX)])}), table)
    found = read(hub_cache(tmp_path, {"data/train-00000-of-00001.parquet": table.getvalue(), "README.md": b"# Faces"}))
    assert [data for data in found.values() if isinstance(data, bytes)] == [encode_face(0, 0, PX)]


def test_links_are_followed_inside_the_source_and_no_further(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "originals").mkdir(parents=True)
    outside.mkdir()
    for index in range(2):
        (tree / "originals" / f"{index}.jpg").write_bytes(encode_face(0, index, PX))
    (outside / "secret.jpg").write_bytes(encode_face(0, 9, PX))
    (tree / "best.jpg").symlink_to("originals/1.jpg")
    (tree / "secret.jpg").symlink_to(outside / "secret.jpg")
    (tree / "chain.jpg").symlink_to("secret.jpg")
    (tree / "loop.jpg").symlink_to("loop.jpg")
    (tree / "gone.jpg").symlink_to("nothing.jpg")
    (tree / "again").symlink_to("originals")
    found = read(tree)
    assert found["best.jpg"] == encode_face(0, 1, PX)
    assert {name: found[name] for name in ("secret.jpg", "chain.jpg", "loop.jpg", "gone.jpg", "again")} == dict.fromkeys(
        ("secret.jpg", "chain.jpg", "loop.jpg", "gone.jpg", "again"), "link"
    )


def test_a_folder_of_nothing_but_links_out_of_it_says_how_to_copy_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").write_bytes(encode_face(0, 0, PX))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.jpg").symlink_to("../blobs/x")
    with pytest.raises(BadInput, match=r"contains no images, but links that are not followed, like a\.jpg") as refused:
        open_path(str(tmp_path / "tree"), PX, None)
    assert "cp -rL" in str(refused.value.hint)


def test_a_link_that_is_changed_to_lead_elsewhere_is_noticed(tmp_path: Path) -> None:
    cache = hub_cache(tmp_path, FILES)
    source = open_path(str(cache), PX, None)
    source.fingerprint()
    link = cache / "snapshots" / REVISION / "data/0.jpg"
    link.unlink()
    link.symlink_to("../../../blobs/" + hashlib.sha256(FILES["data/1.jpg"]).hexdigest())
    with pytest.raises(DataRefused, match="changed while it was ingested"):
        list(source.candidates(BUDGET))
