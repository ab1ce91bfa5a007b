"""The ingest step against real object storage."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from celebdit_testing.steps import keys_below, notes, step_context

from components.context import StepContext
from components.errors import DataRefused
from components.ingest.config import DataConfig
from components.ingest.ingest import run
from components.ingest.synthetic import encode_face, write_archive
from components.manifests import DatasetManifest
from components.packs import fetch_pack
from components.storage import DigestMismatch, ObjectStore, StoreUri


@pytest.fixture
def context(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> StepContext:
    return step_context("ingest", tmp_path, str(prefix), endpoint=rclone_endpoint)


def config(source: Path | str, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {"name": "faces", "source": str(source), "image_px": 32, "shard_bytes": 2**20}
    return DataConfig(**{**values, **changes})


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_archive(tmp_path / "faces.zip", count=30, seed=0, image_px=64)
    return tmp_path / "faces.zip"


def test_an_archive_becomes_a_committed_data_set(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive), context)
    location = StoreUri.parse(manifest.uri)
    assert keys_below(context.store, location) == ["dataset.json", "manifest.parquet", "shard-00000.tar"]
    assert DatasetManifest.parse(context.store.get_bytes(location / "dataset.json"), origin="x") == manifest
    context.store.get_file(location / "manifest.parquet", tmp_path / "table.parquet", sha256=manifest.table_sha256)
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert len(table) == manifest.num_images == 30
    assert set(table["verdict"]) == {"resized"}
    assert sorted(table["source_name"]) == [f"celeba_hq_256/{index:05d}.jpg" for index in range(30)]


def test_a_second_time_is_a_no_op_that_says_so(context: StepContext, archive: Path) -> None:
    first = run(config(archive), context)
    before = context.store.list(context.root)
    assert run(config(archive), context) == first
    assert context.store.list(context.root) == before
    assert any("nothing to do" in note for note in notes(context))


def test_a_data_set_that_lost_a_shard_is_made_again(context: StepContext, archive: Path) -> None:
    first = run(config(archive), context)
    shard = StoreUri.parse(first.uri) / "shard-00000.tar"
    context.store.delete(shard)
    assert run(config(archive), context) == first
    assert context.store.exists(shard)


def test_the_digest_does_not_depend_on_kind_order_or_names_of_the_source(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "shuffled.zip", "w") as shuffled:
        for index in np.random.default_rng(0).permutation(12):
            (folder / f"photo-{index}.jpg").write_bytes(encode_face(0, int(index), 32))
            shuffled.writestr(f"a/b/{99 - index}.jpeg", encode_face(0, int(index), 32))
    digests = {
        run(config(source), context).digest for source in (folder, tmp_path / "shuffled.zip", "synthetic://?count=12&seed=0&size=32")
    }
    assert len(digests) == 1


def test_too_many_rejects_fail_with_counts_per_reason_and_commit_nothing(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for index in range(8):
        (folder / f"{index}.jpg").write_bytes(encode_face(0, index, 32))
    (folder / "bad.jpg").write_bytes(b"not an image")
    (folder / "copy.jpg").write_bytes(encode_face(0, 0, 32))
    with pytest.raises(
        DataRefused,
        match=r"2 of 10 images were rejected, data.max_rejected is 0.1 \((duplicate 1, not_an_image 1|not_an_image 1, duplicate 1)\)",
    ):
        run(config(folder, max_rejected=0.1), context)
    assert context.store.list(context.root) == []
    assert run(config(folder, max_rejected=0.2), context).rejected == {"duplicate": 1, "not_an_image": 1}


def test_too_few_images_fail(context: StepContext, archive: Path) -> None:
    with pytest.raises(DataRefused, match=r"30 images were accepted, data\.min_images is 31"):
        run(config(archive, min_images=31), context)


def test_the_pack_holds_the_images_in_the_order_of_their_keys(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive), context)
    pack = fetch_pack(manifest, context.store, tmp_path / "packs")
    assert len(pack) == 30
    assert list(pack.keys) == sorted(pack.keys)
    assert pack.dataset_digest == manifest.digest
    assert pack.images.shape == (30, 32, 32, 3)
    assert not (tmp_path / "packs").joinpath(f"{manifest.digest[:16]}-train.shards").exists()


def test_held_out_images_are_never_in_the_training_pack(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive, held_out=0.4), context)
    train, held_out = (fetch_pack(manifest, context.store, tmp_path / "packs", split=split) for split in ("train", "held_out"))
    assert len(train) == manifest.num_images
    assert len(held_out) == manifest.num_held_out
    assert 0 < len(held_out) < 30
    assert len(train) + len(held_out) == 30
    assert not set(train.keys) & set(held_out.keys)


def test_a_shard_that_was_tampered_with_is_refused(context: StepContext, archive: Path, tmp_path: Path, rclone_folder: Path) -> None:
    manifest = run(config(archive), context)
    path = rclone_folder / manifest.uri.removeprefix("s3://") / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatch, match=r"shard-00000\.tar has sha256"):
        fetch_pack(manifest, context.store, tmp_path / "packs")


def test_a_torn_pack_is_built_again(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive), context)
    pack = fetch_pack(manifest, context.store, tmp_path / "packs")
    expected = np.array(pack.images)
    (described,) = (tmp_path / "packs").glob("*/pack.json")
    described.write_text(json.dumps({"dataset_digest": manifest.digest, "keys": ["a"]}))
    assert np.array_equal(np.array(fetch_pack(manifest, context.store, tmp_path / "packs").images), expected)


def test_a_data_set_can_be_read_with_any_store(store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    context = step_context("ingest", tmp_path, str(prefix), endpoint=store._client.meta.endpoint_url)
    manifest = run(config("synthetic://?count=5&seed=1&size=32"), context)
    assert len(fetch_pack(manifest, store, tmp_path / "packs")) == 5
