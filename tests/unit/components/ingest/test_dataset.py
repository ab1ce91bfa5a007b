"""What ingest decides and writes, without servers: identity, split, shards, the ledger, drawn faces."""

import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from celebdit_testing.corpus import LIMITS, PX
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataRefused
from components.ingest.colour_statistics import colour_statistics
from components.ingest.config import DataConfig
from components.ingest.dataset.acceptance import require_accepted
from components.ingest.dataset.ledger import Ledger, StoredImage, split_of
from components.ingest.dataset.shards import FinishedShard, ShardWriter, encode_facts, encode_header
from components.ingest.dataset.table import write_table
from components.ingest.decoding.images import judge
from components.ingest.ingest import dataset_digest
from components.ingest.limits import Limits
from components.ingest.sources.synthetic import encode_face, write_archive
from components.ingest.verdicts import Accepted, Code, Extent, Rejected
from components.manifests import Split
from components.storage import file_sha256

LIMITS_32 = Limits(**LIMITS, max_ratio=200)  # type: ignore[arg-type]


def accepted(index: int) -> Accepted:
    verdict = judge(encode_face(0, index, PX), LIMITS_32)
    assert isinstance(verdict, Accepted)
    return verdict


def filled(folder: Path, order: list[int], held_out: float = 0.0) -> Ledger:
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder, held_out=held_out)
    for index in order:
        ledger.record(f"{index}.jpg", accepted(index))
    return ledger


def test_the_digest_of_a_data_set_depends_on_its_images_and_its_split_only() -> None:
    images = [("a", "train"), ("b", "train")]
    assert dataset_digest(32, images) == dataset_digest(32, images)
    others = [images[:1], [("a", "train"), ("c", "train")], [("a", "train"), ("b", "held_out")]]
    assert len({dataset_digest(32, images), dataset_digest(64, images), *(dataset_digest(32, other) for other in others)}) == 5


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.floats(0, 0.5), st.floats(0, 0.5))
def test_an_image_that_is_held_out_stays_so_when_more_are(sha256: str, share: float, more: float) -> None:
    if split_of(sha256, share) == "held_out":
        assert split_of(sha256, share + more) == "held_out"
    assert split_of(sha256, 0.0) == "train"


_LONG = f"{'a library that says much before it says what it means, ' * 3}convert them"


@pytest.mark.parametrize(
    ("code", "reason", "shown"),
    [
        ("truncated", _LONG, f"corrupt: {_LONG}"),
        ("unsupported_format", "a HEIC of AV1; convert it to JPEG or PNG", "(a HEIC of AV1; convert it to JPEG or PNG"),
    ],
)
def test_a_reason_that_all_rejected_files_share_is_shown_to_its_end(code: Code, reason: str, shown: str, tmp_path: Path) -> None:
    with filled(tmp_path, []) as ledger:
        ledger.record("a.jpg", Rejected(code, reason))
        config = DataConfig(name="faces", source="x", image_px=16)
        with pytest.raises(DataRefused) as refused:
            require_accepted(config, ledger, report=tmp_path / "report.html", thumbnail=lambda data: b"")
    assert f"{shown}): a.jpg\n" in str(refused.value)
    assert "make extras" not in str(refused.value)


def write_shards(ledger: Ledger, folder: Path, shard_bytes: int) -> list[FinishedShard]:
    writer, shards = ShardWriter(folder, shard_bytes=shard_bytes), []
    for image in ledger.images():
        placed, finished = writer.add(image, ledger.data(image))
        ledger.place(image.sha256, placed.shard, placed.offset)
        shards += [finished] if finished else []
    last = writer.close()
    return [*shards, *([last] if last else [])]


def test_shards_are_readable_tars_and_the_table_points_at_the_bytes(tmp_path: Path) -> None:
    with filled(tmp_path / "ledger", list(range(40))) as ledger:
        shards = write_shards(ledger, tmp_path / "shards", 20_000)
        write_table(ledger, tmp_path / "table.parquet")
    assert len(shards) > 1
    assert sum(shard.num_images for shard in shards) == 40
    assert all(shard.size_bytes == (tmp_path / "shards" / shard.name).stat().st_size for shard in shards)
    for row in pd.read_parquet(tmp_path / "table.parquet").to_dict("records"):
        raw = (tmp_path / "shards" / row["shard"]).read_bytes()
        assert raw[row["offset"] : row["offset"] + row["size_bytes"]] == encode_face(0, int(row["source_name"].split(".")[0]), PX)
    with tarfile.open(tmp_path / "shards" / shards[0].name) as tar:
        image, facts = tar.getnames()[:2]
        file = tar.extractfile(facts)
        assert file is not None
        index = json.load(file)
    assert image.rsplit(".", 1) == [index["key"], "jpg"]
    assert (facts, index["split"], index["key"]) == (f"{index['key']}.json", "train", index["sha256"][:20])


@given(st.text("0123456789abcdef.jpgson", min_size=1, max_size=100), st.integers(0, 8**11 - 1))
def test_the_header_of_a_shards_entry_is_the_one_that_tarfile_writes(name: str, size_bytes: int) -> None:
    theirs = tarfile.TarInfo(name)
    theirs.size, theirs.mode = size_bytes, 0o644
    assert encode_header(name, size_bytes) == theirs.tobuf(tarfile.USTAR_FORMAT)


@given(st.lists(st.floats(0, 1).map(lambda value: round(value, 6)), min_size=6, max_size=6), st.sampled_from(["train", "held_out"]))
def test_the_facts_beside_an_image_are_the_json_that_the_json_module_writes(values: list[float], split: Split) -> None:
    image = StoredImage("ab" * 32, "jpg", split, tuple(values[:3]), tuple(values[3:]), False, 0, 1)  # type: ignore[arg-type]
    facts = {"key": image.key, "sha256": image.sha256, "split": split, "mean": values[:3], "std": values[3:]}
    assert encode_facts(image) == json.dumps(facts, sort_keys=True).encode()


def test_shards_do_not_depend_on_the_order_of_the_source(tmp_path: Path) -> None:
    outputs = []
    for name, order in (("a", [0, 1, 2, 3]), ("b", [3, 1, 0, 2])):
        with filled(tmp_path / name, order) as ledger:
            shards = write_shards(ledger, tmp_path / name / "shards", 20_000)
            outputs.append([(shard, file_sha256(tmp_path / name / "shards" / shard.name)) for shard in shards])
    assert outputs[0] == outputs[1]


def test_the_ledger_keeps_every_verdict_and_the_bytes_once(tmp_path: Path) -> None:
    with filled(tmp_path, [0, 1, 0]) as ledger:
        ledger.record("\x1bbad\udcff.jpg", Rejected("truncated", "line\nbreak", b"thumb"))
        ledger.record("readme", Rejected("ignored", ""))
        assert ledger.accepted == 2
        assert ledger.rejected == {"duplicate": 1, "truncated": 1}
        assert [ledger.data(image) for image in ledger.images()] == sorted(
            (encode_face(0, index, PX) for index in range(2)),
            key=lambda data: judge(data, LIMITS_32).sha256,  # type: ignore[union-attr]
        )
        write_table(ledger, tmp_path / "table.parquet")
        first = next(ledger.images())
        ledger.reject_accepted(first.sha256, Rejected("near_duplicate", "looks like x"))
        assert ledger.accepted == 1
        assert ledger.rejected["near_duplicate"] == 1
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert sorted(table["verdict"]) == ["as_is", "as_is", "duplicate", "ignored", "truncated"]
    assert "\\x1bbad\\udcff.jpg" in set(table["source_name"])
    assert set(table.loc[table["accepted"], "split"]) == {"train"}
    assert table.loc[~table["accepted"], "shard"].isna().all()


def archived(folder: Path) -> tuple[Path, Accepted]:
    """An archive that holds a image as it is, between other bytes, and the verdict that says where."""
    verdict = accepted(0)
    assert isinstance(verdict.data, bytes)
    (folder / "archive").write_bytes(b"before" + verdict.data + b"after")
    return folder / "archive", verdict._replace(data=Extent(6, len(verdict.data)))


def test_what_lies_in_the_archive_is_not_copied(tmp_path: Path) -> None:
    archive, verdict = archived(tmp_path)
    with Ledger(tmp_path, held_out=0.0, archive=archive) as ledger:
        ledger.record("0.jpg", verdict)
        ledger.record("1.jpg", accepted(1))
        data = {image.sha256: ledger.data(image) for image in ledger.images()}
    assert data == {accepted(index).sha256: encode_face(0, index, PX) for index in range(2)}
    assert (tmp_path / "accepted.bytes").read_bytes() == encode_face(0, 1, PX)


def test_an_archive_that_changes_under_way_is_refused(tmp_path: Path) -> None:
    archive, verdict = archived(tmp_path)
    with Ledger(tmp_path, held_out=0.0, archive=archive) as ledger:
        ledger.record("0.jpg", verdict)
        (image,) = ledger.images()
        changed = bytearray(archive.read_bytes())
        changed[200] ^= 1
        archive.write_bytes(changed)
        with pytest.raises(DataRefused, match="archive changed while it was ingested"):
            ledger.data(image)


@pytest.mark.fault
@pytest.mark.slow
def test_of_equal_images_the_first_is_kept_however_far_apart_they_come(tmp_path: Path) -> None:
    with Ledger(tmp_path, held_out=0.0) as ledger:
        for index in [0, *range(600), 599, 0]:
            ledger.record(f"{index}.jpg", accepted(0)._replace(sha256=f"{index:064x}", data=b"%d" % index))
        assert ledger.accepted == 600
        assert ledger.rejected == {"duplicate": 3}
        assert [ledger.value("SELECT accepted FROM seen WHERE n=?", n) for n in (1, 2, 601, 602, 603)] == [1, 0, 1, 0, 0]
    assert (tmp_path / "accepted.bytes").read_bytes() == b"".join(b"%d" % index for index in range(600))


def test_the_table_holds_texts_and_numbers_that_are_missing(tmp_path: Path) -> None:
    with filled(tmp_path, [0]) as ledger:
        ledger.record("größe.jpg", Rejected("truncated", ""))
        write_table(ledger, tmp_path / "table.parquet")
    accepted_row, refused_row = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert (
        accepted_row["source_name"],
        accepted_row["accepted"],
        accepted_row["detail"],
        accepted_row["width"],
        accepted_row["format"],
    ) == ("0.jpg", True, None, PX, "jpg")
    assert [accepted_row[f"mean_{channel}"] for channel in "rgb"] == list(colour_statistics([accepted(0).small])[0][0])
    assert (refused_row["source_name"], refused_row["accepted"], refused_row["detail"], refused_row["width"]) == (
        "größe.jpg",
        False,
        "",
        None,
    )
    assert {refused_row[name] for name in ("key", "sha256", "shard", "offset", "size_bytes", "mean_r")} == {None}


def test_the_ledger_takes_no_more_memory_with_more_images(tmp_path: Path) -> None:
    """The number of images may be anything: what is held is the database's page cache."""
    verdict = accepted(0)
    with Ledger(tmp_path, held_out=0.0) as ledger:
        tracemalloc.start()
        for index in range(3000):
            ledger.record(f"{index}.jpg", verdict._replace(sha256=f"{index:064x}"))
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert grown < 2**20


def test_drawn_faces_are_a_function_of_seed_and_index_and_vary() -> None:
    assert encode_face(0, 3, 64) == encode_face(0, 3, 64)
    assert len({encode_face(seed, index, 64) for seed in range(2) for index in range(20)}) == 40


def test_the_archive_is_laid_out_like_kaggles_and_always_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_archive(tmp_path / name, count=3, seed=0, image_px=32)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"celeba_hq_256/{index:05d}.jpg" for index in range(3)]
