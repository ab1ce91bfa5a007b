"""The ingest step against real object storage."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from celebdit_testing.corpus import IMAGES, LIMITS
from celebdit_testing.steps import keys_below, notes, step_context
from PIL import Image

from components.errors import DataRefused
from components.ingest import ingest as ingest_module
from components.ingest.config import DataConfig
from components.ingest.decoding import pool
from components.ingest.ingest import run
from components.ingest.sources.synthetic import encode_face, write_archive
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.runtime.events import EventReader
from components.storage import DigestMismatch, ObjectStore, StoreUri
from components.stores.dataset_cache import fetch_pack
from components.system.disk import DiskFull


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


def test_decoders_start_while_a_source_is_read_unless_its_dataset_may_exist(
    context: StepContext, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    start, fingerprint = pool.Worker, ingest_module.request_digest

    def worker(*arguments: Any, **options: Any) -> pool.Worker:
        started.append(True)
        return start(*arguments, **options)

    def digest(source: Any, config: DataConfig) -> str:
        started_before.append(len(started))
        return fingerprint(source, config)

    started_before: list[int] = []
    monkeypatch.setattr(pool, "Worker", worker)
    monkeypatch.setattr(ingest_module, "request_digest", digest)
    first = run(config(archive), context, workers=2)
    assert (run(config(archive), context, workers=2), started_before, len(started)) == (first, [2, 2], 2)


def test_an_archive_becomes_a_committed_data_set(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive), context)
    location = context.layout.locate(manifest.uri)
    assert keys_below(context.store, location) == ["dataset.json", "manifest.parquet", "report.html", "shard-00000.tar"]
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
    shard = context.layout.locate(first.uri) / "shard-00000.tar"
    context.store.delete(shard)
    assert run(config(archive), context) == first
    assert context.store.exists(shard)


def test_digest_and_shards_do_not_depend_on_kind_order_names_or_workers(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "shuffled.zip", "w") as shuffled:
        for index in np.random.default_rng(0).permutation(12):
            (folder / f"photo-{index}.jpg").write_bytes(encode_face(0, int(index), 32))
            shuffled.writestr(f"a/b/{99 - index}.jpeg", encode_face(0, int(index), 32))
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(folder, "other")
    manifests = []
    for number, source in enumerate(
        (folder, tmp_path / "shuffled.zip", tmp_path / "packed.tar.gz", "synthetic://?count=12&seed=0&size=32")
    ):
        manifest = run(config(source, name=f"set-{number}"), context, workers=1 + number)
        manifests.append((manifest.digest, manifest.shards, manifest.num_images))
    assert manifests.count(manifests[0]) == 4


def test_the_same_images_from_another_source_are_found_again(context: StepContext, archive: Path, tmp_path: Path) -> None:
    first = run(config(archive), context)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "tree")
    before = context.store.list(context.root)
    assert run(config(tmp_path / "tree"), context) == first
    after = context.store.list(context.root)
    assert [item for item in after if "/requests/" not in item.uri.key] == [item for item in before if "/requests/" not in item.uri.key]
    assert any("these images are a complete dataset already" in note for note in notes(context))
    relicensed = run(config(archive, licence="CC0-1.0"), context)
    assert (relicensed.digest, relicensed.shards, relicensed.licence) == (first.digest, first.shards, "CC0-1.0")


def test_holding_images_out_makes_another_data_set(context: StepContext, archive: Path) -> None:
    digests = [run(config(archive, held_out=share), context).digest for share in (0.0, 0.3, 0.6)]
    assert len(set(digests)) == 3


def corpus_folder(tmp_path: Path) -> Path:
    for name, (make, _) in IMAGES.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
    return tmp_path / "corpus"


def test_the_hostile_corpus_becomes_a_table_of_verdicts_and_a_report(context: StepContext, tmp_path: Path) -> None:
    manifest = run(config(corpus_folder(tmp_path), max_rejected=0.9, **LIMITS), context)
    location = context.layout.locate(manifest.uri)
    context.store.get_file(location / "manifest.parquet", tmp_path / "table.parquet", sha256=manifest.table_sha256)
    table = pd.read_parquet(tmp_path / "table.parquet").set_index("source_name")
    expected = {name: verdict for name, (_, verdict) in IMAGES.items()}
    twins = {"plain.jpg", "copy-of-plain.jpg"}  # which of the two is the copy depends on their names
    assert {name: row.verdict for name, row in table.iterrows() if name not in twins} == {
        n: v for n, v in expected.items() if n not in twins
    }
    assert sorted(table.loc[sorted(twins), "verdict"]) == ["as_is", "duplicate"]
    assert manifest.num_images == table["accepted"].sum()
    assert sum(manifest.rejected.values()) + manifest.ignored == (~table["accepted"]).sum()
    assert table.loc["larger.jpg", ["width", "height", "format", "split"]].to_list() == [64, 64, "png", "train"]
    accepted, refused = table[table["accepted"]], table[~table["accepted"]]
    assert table.index.tolist() == [*accepted.index, *refused.index]
    assert accepted["sha256"].tolist() == sorted(accepted["sha256"])
    page = context.store.get_bytes(location / "report.html").decode()
    assert all(f'title="{name}: "' in page for name in accepted.index)
    for code in manifest.rejected:
        assert f"<h2>{code} " in page
    assert page.count("data:image/jpeg;base64,") >= manifest.num_images
    assert "<script" not in page
    assert "bomb.png" in page


def test_names_in_the_report_are_escaped(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"no image")
    (folder / "good.jpg").write_bytes(encode_face(0, 0, 32))
    manifest = run(config(folder, max_rejected=0.6), context)
    page = context.store.get_bytes(context.layout.locate(manifest.uri) / "report.html").decode()
    assert "&lt;img src=x onerror=alert(1)&gt;.jpg" in page
    assert "<img src=x" not in page


def test_near_duplicates_are_rejected_when_asked_for(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.jpg").write_bytes(encode_face(0, index, 32))
    Image.open(io.BytesIO(encode_face(0, 0, 32))).save(folder / "again.jpg", quality=90)
    assert run(config(folder), context).num_images == 7
    manifest = run(config(folder, near_duplicate_bits=3, max_rejected=0.2), context)
    assert (manifest.num_images, manifest.rejected) == (6, {"near_duplicate": 1})


@pytest.mark.parametrize(("max_rejected", "passes"), [(0.2, True), (0.199, False)])
def test_the_share_of_rejects_may_reach_its_limit_and_not_more(
    context: StepContext, tmp_path: Path, max_rejected: float, passes: bool
) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.jpg").write_bytes(encode_face(0, index, 32))
    (folder / "bad.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_bytes(b"does not count")
    if passes:
        assert run(config(folder, max_rejected=max_rejected), context).ignored == 1
    else:
        with pytest.raises(DataRefused) as refused:
            run(config(folder, max_rejected=max_rejected), context)
        assert refused.value.exit_code == 3


def test_a_limit_on_the_size_of_files_is_named_and_nothing_is_left(context: StepContext, archive: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(DiskFull, match=r"the dataset cannot be written to .*: files may have at most") as refused:
            run(config(archive), context)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert "ulimit -f unlimited" in str(refused.value.hint)
    assert not [entry for entry in (context.settings.work_dir / "ingest").iterdir() if entry.is_dir()]


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
    ) as few:
        run(config(folder, max_rejected=0.1), context)
    assert few.value.hint == "clean the source, or accept this with data.max_rejected=0.2", "a value that allows just these"
    assert context.store.list(context.root) == []
    for index in range(4):
        (folder / f"worse-{index}\n.jpg").write_bytes(b"not an image")
    with pytest.raises(DataRefused) as refused:
        run(config(folder, max_rejected=0.1, min_images=9), context)
    first, named, copied, page = refused.value.message.splitlines()
    assert first.startswith("6 of 14 images were rejected, data.max_rejected is 0.1 (not_an_image 5, duplicate 1); 8 are left, ")
    assert first.endswith("data.min_images is 9")
    assert "bad.jpg" in named
    assert "and 2 more" in named
    assert "copy.jpg" in copied
    report = Path(page.removeprefix("all of them: "))
    assert report.is_relative_to(context.settings.work_dir)
    assert all(name in report.read_text() for name in ("bad.jpg", "copy.jpg", "worse-3", "<img"))
    for path in folder.glob("worse-*"):
        path.unlink()
    assert run(config(folder, max_rejected=0.2), context).rejected == {"duplicate": 1, "not_an_image": 1}


def test_a_refusal_says_what_all_files_of_a_kind_have_in_common_and_offers_only_what_helps(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
        (folder / f"{index}.psd").write_bytes(b"8BPS\0\1" + bytes(100))
    with pytest.raises(DataRefused) as refused:
        run(config(folder), context)
    assert "run `git lfs pull` where it was cloned): 0.jpg, 1.jpg, 2.jpg" in refused.value.message
    assert refused.value.hint == "convert them to JPEG or PNG; clean the source, or raise data.max_rejected", "no extra reads a PSD"


def test_progress_counts_images_and_not_what_is_left_out(context: StepContext, tmp_path: Path) -> None:
    path = tmp_path / "finder.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(40):
            archive.writestr(f"Photos/{index}.jpg", encode_face(0, index, 32))
            archive.writestr(f"__MACOSX/Photos/._{index}.jpg", b"\0\5\x16\7" + bytes(82))
    run(config(path), context)
    assert context.settings.events_path is not None
    counted = [event.facts for event in EventReader(context.settings.events_path).read() if event.kind == "progress"]
    assert counted
    assert {facts["total"] for facts in counted} == {40}
    assert counted[-1]["done"] == 40
    assert any("(40 in __MACOSX, which macOS adds to an archive)" in note for note in notes(context))


def test_too_few_images_fail(context: StepContext, archive: Path) -> None:
    with pytest.raises(DataRefused, match=r"30 images were accepted, data\.min_images is 31 \(none rejected\)\nall of them: "):
        run(config(archive, min_images=31), context)


def test_a_source_of_rejects_alone_says_so_with_their_names(context: StepContext, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"not an image")
    with pytest.raises(DataRefused, match=r"1 of 1 images were rejected.*; 0 are left.*\nnot_an_image \(.*\): bad\.jpg\nall of them: "):
        run(config(folder, max_rejected=0.1, min_images=1), context)


def test_the_pack_holds_the_images_in_the_order_of_their_keys(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive), context)
    pack = fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout)
    assert len(pack) == 30
    assert list(pack.keys) == sorted(pack.keys)
    assert pack.dataset_digest == manifest.digest
    assert pack.images.shape == (30, 32, 32, 3)
    assert not (tmp_path / "packs").joinpath(f"{manifest.digest[:16]}-train.shards").exists()


def test_held_out_images_are_never_in_the_training_pack(context: StepContext, archive: Path, tmp_path: Path) -> None:
    manifest = run(config(archive, held_out=0.4), context)
    train, held_out = (
        fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout, split=split) for split in ("train", "held_out")
    )
    assert len(train) == manifest.num_images
    assert len(held_out) == manifest.num_held_out
    assert 0 < len(held_out) < 30
    assert len(train) + len(held_out) == 30
    assert not set(train.keys) & set(held_out.keys)


def test_a_shard_that_was_tampered_with_is_refused(context: StepContext, archive: Path, tmp_path: Path, rclone_folder: Path) -> None:
    manifest = run(config(archive), context)
    path = rclone_folder / str(context.layout.locate(manifest.uri)).removeprefix("s3://") / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DigestMismatch, match=r"shard-00000\.tar has sha256"):
        fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout)


TEARS = {
    "described otherwise": lambda pack: (pack / "pack.json").write_text(json.dumps({"keys": ["a"]})),
    "not described": lambda pack: (pack / "pack.json").unlink(),
    "half described": lambda pack: (pack / "pack.json").write_text((pack / "pack.json").read_text()[:50]),
    "cut off": lambda pack: os.truncate(pack / "images.npy", 5000),
    "one bit": lambda pack: flip(pack / "images.npy"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_pack_is_built_again_and_no_open_one_changes(context: StepContext, archive: Path, tmp_path: Path, tear: str) -> None:
    manifest = run(config(archive), context)
    expected = np.array(fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout).images)
    (folder,) = (entry for entry in (tmp_path / "packs").iterdir() if entry.is_dir())
    TEARS[tear](folder)
    again = fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout)
    assert np.array_equal(np.array(again.images), expected)
    (folder / "pack.json").unlink()
    third = fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout)
    assert np.array_equal(np.array(again.images), expected)
    assert np.array_equal(np.array(third.images), expected)


FETCH = """
import sys
from pathlib import Path
from components.manifests import DatasetManifest
from components.stores.dataset_cache import fetch_pack
from components.storage import StoreUri, connect
from components.stores.layout import StoreLayout

manifest = DatasetManifest.load(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
seen = []
layout = StoreLayout(StoreUri.parse(sys.argv[4]))
pack = fetch_pack(manifest, connect(sys.argv[3]), Path(sys.argv[2]), layout=layout, on_progress=lambda done, total: seen.append(done))
print(len(seen), pack.pixels_sha256, len(pack))
"""


@pytest.mark.fault
@pytest.mark.slow
def test_processes_that_start_at_once_build_the_pack_once(
    context: StepContext, archive: Path, tmp_path: Path, rclone_endpoint: str
) -> None:
    manifest = run(config(archive), context)
    manifest.dump(tmp_path / "manifest.json")
    command = [sys.executable, "-c", FETCH, str(tmp_path / "manifest.json"), str(tmp_path / "packs"), rclone_endpoint, str(context.root)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outputs = [process.communicate("go\n", timeout=60)[0].split() for process in processes]
    assert sorted(int(output[0]) for output in outputs) == [0, 30]
    assert len({tuple(output[1:]) for output in outputs}) == 1


def test_a_data_set_can_be_read_with_any_store(store: ObjectStore, prefix: StoreUri, tmp_path: Path) -> None:
    context = step_context("ingest", tmp_path, str(prefix), endpoint=store.client.meta.endpoint_url)
    manifest = run(config("synthetic://?count=5&seed=1&size=32"), context)
    assert len(fetch_pack(manifest, store, tmp_path / "packs", layout=context.layout)) == 5
