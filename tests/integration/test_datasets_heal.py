"""Datasets whose objects were damaged, lost or replaced, and sources that change while they are read."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.damage import KINDS, contents, damage
from celebdit_testing.faults import Fault, fault_proxy
from celebdit_testing.recipes import dataset_manifest
from celebdit_testing.steps import notes, step_context

from components.errors import DataRefused
from components.ingest.config import DataConfig
from components.ingest.dataset.shards import encode_header
from components.ingest.ingest import run
from components.ingest.limits import Budget
from components.ingest.sources.kinds import Reach
from components.ingest.sources.open_source import open_source
from components.ingest.sources.remote import PrefixSource
from components.ingest.sources.synthetic import encode_face, write_archive
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.storage import ObjectChanged, StoreUri, connect, file_sha256
from components.stores.dataset_cache import fetch_pack
from components.stores.dataset_content import read_members
from components.system.work_folders import WorkFolder

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**30, max_entries=1000, max_ratio=200)
SHARD = "shard-00000.tar"


def config(source: Path | str = "synthetic://?count=6&seed=0&size=32", **changes: Any) -> DataConfig:
    return DataConfig(**{"name": "faces", "source": str(source), "image_px": 32, **changes})


@pytest.fixture
def context(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> StepContext:
    return step_context("ingest", tmp_path, str(prefix), endpoint=rclone_endpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_data_set_is_made_again_with_the_same_bytes(context: StepContext, kind: str) -> None:
    store, manifest = context.store, run(config(), context, workers=1)
    location = context.layout.locate(manifest.uri)
    whole = contents(store, location)
    other = contents(store, context.layout.locate(run(config("synthetic://?count=5&seed=9&size=32", name="other"), context, workers=1).uri))
    for number, name in enumerate(sorted(whole), start=1):
        damage(store, location / name, kind, other=other[name])
        damaged = contents(store, location).get(name)
        assert run(config(), context, workers=1) == manifest
        assert contents(store, location) == whole
        moved = [data for key, data in contents(store, context.layout.quarantine).items() if key.endswith(f"{manifest.digest}/{name}")]
        assert moved == ([] if kind == "deleted" else [damaged])
        noted = [note for note in notes(context) if "is damaged and is made again" in note]
        assert len(noted) == number - (kind == "deleted"), "without its manifest, the first of its objects, it is no dataset"
    assert len(fetch_pack(manifest, store, context.scratch(WorkFolder.PACKS), layout=context.layout)) == 6


def replace_consistently(context: StepContext, manifest: DatasetManifest) -> None:
    """Put other images, with fitting hashes, under the digest of `manifest`."""
    location = context.layout.locate(manifest.uri)
    other = run(config("synthetic://?count=6&seed=5&size=32", name="other"), context, workers=1)
    forged = other.model_copy(update={"name": manifest.name, "uri": manifest.uri, "digest": manifest.digest})
    for name, data in contents(context.store, context.layout.locate(other.uri)).items():
        context.store.put_bytes(location / name, data)
    context.store.put_bytes(location / "dataset.json", forged.model_dump_json().encode())
    report = hashlib.sha256(context.store.get_bytes(location / "report.html")).hexdigest()
    context.store.put_bytes(context.layout.checksums(location), json.dumps({"sha256": {"report.html": report}}).encode())
    assert forged.shards != manifest.shards


def test_images_that_were_replaced_with_fitting_hashes_are_not_trained_on_and_are_made_again(context: StepContext) -> None:
    manifest = run(config(), context, workers=1)
    whole = contents(context.store, context.layout.locate(manifest.uri))
    replace_consistently(context, manifest)
    stored = context.store.get_bytes(context.layout.locate(manifest.uri) / "dataset.json")
    forged = DatasetManifest.parse(stored, origin="forged")
    with pytest.raises(DataRefused, match=f"have the dataset digest .*, expected {manifest.digest}"):
        fetch_pack(forged, context.store, context.scratch(WorkFolder.PACKS), layout=context.layout)
    assert run(config(), context, workers=1) == manifest
    assert contents(context.store, context.layout.locate(manifest.uri)) == whole
    assert any("have the dataset digest" in note for note in notes(context))
    assert len(fetch_pack(manifest, context.store, context.scratch(WorkFolder.PACKS), layout=context.layout)) == 6


def test_the_receipt_of_another_data_set_is_not_believed(context: StepContext) -> None:
    manifest = run(config(), context, workers=1)
    run(config("synthetic://?count=5&seed=9&size=32", name="other"), context, workers=1)
    (receipt,) = context.store.list(context.layout.requests("faces"))
    (other,) = context.store.list(context.layout.requests("other"))
    context.store.put_bytes(receipt.uri, context.store.get_bytes(other.uri))
    assert run(config(), context, workers=1) == manifest


def shard_of(*entries: tuple[str, bytes]) -> bytes:
    parts = []
    for name, data in entries:
        parts += [encode_header(name, len(data)), data, bytes(-len(data) % 512)]
    return b"".join([*parts, bytes(1024)])


IMAGE = b"an image"
NAME = hashlib.sha256(IMAGE).hexdigest()[:20]
FACTS = json.dumps({"split": "train"}).encode()
EXTENDED = tarfile.TarInfo("x")
EXTENDED.pax_headers = {"comment": "x" * 100}
SHARDS: dict[str, bytes] = {
    "another name": shard_of(("0" * 20 + ".jpg", IMAGE), ("0" * 20 + ".json", FACTS)),
    "no facts": shard_of((f"{NAME}.jpg", IMAGE)),
    "no image": shard_of((f"{NAME}.json", FACTS)),
    "no split": shard_of((f"{NAME}.jpg", IMAGE), (f"{NAME}.json", b"{}")),
    "an unknown split": shard_of((f"{NAME}.jpg", IMAGE), (f"{NAME}.json", b'{"split": "all"}')),
    "nested facts": shard_of((f"{NAME}.jpg", IMAGE), (f"{NAME}.json", b"[" * 60000)),
    "cut off": shard_of((f"{NAME}.jpg", IMAGE), (f"{NAME}.json", FACTS))[:700],
    "extended headers": EXTENDED.tobuf(tarfile.PAX_FORMAT)[:1024] * 3000,
    "no tar": b"x" * 2000,
    "empty": b"",
    "twice": shard_of(*[(f"{NAME}.jpg", IMAGE), (f"{NAME}.json", FACTS)] * 2),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / SHARD).write_bytes(SHARDS[name])
    with pytest.raises(DataRefused, match=r"shard|twice|split|sha256"):
        read_members([tmp_path / SHARD], dataset_manifest())


def rewrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def swap(path: Path, data: bytes) -> None:
    path.with_suffix(".new").write_bytes(data)
    os.utime(path.with_suffix(".new"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.with_suffix(".new").replace(path)


def in_place(path: Path, data: bytes) -> None:
    """Write the same number of bytes and set the old time again."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path, bytes], None]] = {"rewritten": rewrite, "swapped": swap, "in place": in_place}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_source_that_changes_after_it_was_hashed_is_refused(
    context: StepContext, tmp_path: Path, kind: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source, changing = folder, folder / "1.jpg"
    if kind == "folder":
        for index in range(3):
            (folder / f"{index}.jpg").write_bytes(encode_face(0, index, 32))
        replacement = encode_face(7, 7, 32)
    elif kind == "zip":
        source = changing = folder / "faces.zip"
        write_archive(source, count=3, seed=0, image_px=32)
        write_archive(folder / "other.zip", count=3, seed=7, image_px=32)
        replacement = (folder / "other.zip").read_bytes()
    else:
        source = changing = folder / "faces.tar"
        for seed, path in ((0, source), (7, folder / "other.tar")):
            (folder / "face.jpg").write_bytes(encode_face(seed, 0, 32))
            with tarfile.open(path, "w") as archive:
                archive.add(folder / "face.jpg", "face.jpg")
        replacement = (folder / "other.tar").read_bytes()
    opened = open_source(config(source))
    assert opened is not None
    fingerprint = type(opened).fingerprint
    fired = []

    def fingerprint_then_change(self: Any) -> str:
        digest = fingerprint(self)
        CHANGES[change](changing, replacement)
        fired.append(file_sha256(changing))
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(type(opened), "fingerprint", fingerprint_then_change)
        with pytest.raises(DataRefused, match="changed while it was ingested"):
            run(config(source), context, workers=1)
    assert fired
    assert context.store.list(context.root) == []
    assert run(config(source, max_rejected=0.9), context, workers=1).num_images > 0


@pytest.mark.parametrize("change", ["gone", "new"])
def test_a_file_that_comes_or_goes_after_the_folder_was_hashed_is_noticed(tmp_path: Path, change: str) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(encode_face(0, index, 32))
    source = open_source(config(tmp_path))
    assert source is not None
    source.fingerprint()
    if change == "gone":
        (tmp_path / "2.jpg").unlink()
    else:
        (tmp_path / "3.jpg").write_bytes(encode_face(0, 3, 32))
    with pytest.raises(DataRefused, match="changed while it was ingested"):
        list(source.candidates(BUDGET))
        source.require_unchanged()


def test_an_object_that_was_replaced_after_the_listing_is_refused(context: StepContext, prefix: StoreUri) -> None:
    store, home = context.store, prefix / "in"
    for index in range(3):
        store.put_bytes(home / f"{index}.jpg", encode_face(0, index, 32))
    source = PrefixSource(home, store.list(home), store)
    source.fingerprint()
    store.put_bytes(home / "1.jpg", encode_face(9, 9, 32))
    with pytest.raises(ObjectChanged, match=r"1\.jpg changed while it was read: it was listed with"):
        list(source.candidates(BUDGET))


def test_bytes_that_do_not_have_their_etag_are_read_again_and_then_refused(
    moto_endpoint: str, s3_credentials: None, prefix: StoreUri, tmp_path: Path
) -> None:
    with fault_proxy(moto_endpoint) as proxy:
        store = connect(proxy.endpoint, deadline_s=5.0)
        write_archive(tmp_path / "faces.zip", count=2, seed=0, image_px=32)
        store.put_bytes(prefix / "in" / "0.jpg", encode_face(0, 0, 32))
        store.put_file(prefix / "faces.zip", tmp_path / "faces.zip")
        source = PrefixSource(prefix / "in", store.list(prefix / "in"), store)
        with proxy.injecting(Fault("flipped", "GET", times=1, path="0.jpg")):
            assert [candidate.data for candidate in source.candidates(BUDGET)] == [encode_face(0, 0, 32)]
        with (
            proxy.injecting(Fault("flipped", "GET", times=3, path="0.jpg")),
            pytest.raises(ObjectChanged, match=r"0\.jpg changed while it was read: bytes with MD5"),
        ):
            list(source.candidates(BUDGET))
        reach = Reach(store, tmp_path / "downloads")
        for times, expected in ((1, None), (3, ObjectChanged)):
            archive = open_source(config(str(prefix / "faces.zip")), reach)
            assert archive is not None
            with proxy.injecting(Fault("flipped", "GET", times=times, path="faces.zip")):
                if expected is None:
                    assert archive.archive_path().read_bytes() == (tmp_path / "faces.zip").read_bytes()  # type: ignore[union-attr]
                else:
                    with pytest.raises(expected, match=r"faces\.zip changed while it was read"):
                        archive.archive_path()
            for path in (tmp_path / "downloads").rglob("*.zip"):
                path.unlink()


def test_an_archive_that_was_replaced_after_it_was_opened_is_refused(context: StepContext, prefix: StoreUri, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_archive(tmp_path / f"{seed}.zip", count=2, seed=seed, image_px=32)
    uri = prefix / "faces.zip"
    context.store.put_file(uri, tmp_path / "0.zip")
    source = open_source(config(str(uri)), Reach(context.store, tmp_path / "downloads"))
    assert source is not None
    source.fingerprint()
    context.store.put_bytes(uri, (tmp_path / "1.zip").read_bytes() + b"\0")
    with pytest.raises(ObjectChanged, match=r"faces\.zip changed while it was read"):
        source.archive_path()
    assert not [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]


def test_an_archive_that_was_replaced_between_opening_and_hashing_is_noticed(tmp_path: Path) -> None:
    """Workers open it before it is hashed, so that they would read another file than the one in the fingerprint."""
    for seed in (0, 1):
        write_archive(tmp_path / f"{seed}.zip", count=2, seed=seed, image_px=32)
    source = open_source(config(tmp_path / "0.zip"))
    assert source is not None
    (tmp_path / "1.zip").replace(tmp_path / "0.zip")
    source.fingerprint()
    with pytest.raises(DataRefused, match="is not the file that was opened and hashed"):
        source.require_unchanged()


def test_parts_that_killed_downloads_left_are_removed_and_those_of_living_ones_are_not(context: StepContext, prefix: StoreUri) -> None:
    context.store.put_bytes(prefix / "x-1", b"data")
    folder = context.scratch(WorkFolder.DOWNLOADS, "downloaded")
    old, young, continued = (folder / f".x-1.{mark}.partial" for mark in ("0" * 8, "1" * 8, "2" * 16))
    for part in (old, young, continued):
        part.write_bytes(b"part")
    for part in (old, continued):
        os.utime(part, (0, 0))
    context.store.get_file(prefix / "x-1", folder / "x-1")
    assert sorted(path.name for path in folder.iterdir()) == [young.name, continued.name, "x-1"]
