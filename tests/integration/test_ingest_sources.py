"""Sources that ingest reads as a whole: a dataset of our own at another size, series below a prefix, the Hugging Face hub."""

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.hub import COMMIT, NAME, Hub, using_hub
from celebdit_testing.packed import parquet_of, tar_of
from celebdit_testing.steps import notes, step_context, wait_until_settled
from PIL import Image

from components.errors import BadInput, DataRefused
from components.ingest.config import DataConfig
from components.ingest.ingest import run
from components.ingest.limits import Budget
from components.ingest.sources.synthetic import encode_face, write_archive
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.storage import StoreUri

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**30, max_entries=1000, max_ratio=200)
FACES = [encode_face(0, index, 32) for index in range(8)]


def config(source: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"name": "faces", "source": source, "image_px": 32, **changes})


@pytest.fixture
def context(rclone_endpoint: str, prefix: StoreUri, tmp_path: Path) -> StepContext:
    return step_context("ingest", tmp_path, str(prefix / "store"), endpoint=rclone_endpoint)


@pytest.fixture
def stored(context: StepContext, tmp_path: Path) -> DatasetManifest:
    write_archive(tmp_path / "faces.zip", count=12, seed=0, image_px=32)
    return run(config(str(tmp_path / "faces.zip"), licence="CelebA research", licence_accepted_by="Ada", held_out=0.3), context)


def test_a_stored_dataset_is_a_source_at_another_size(context: StepContext, stored: DatasetManifest) -> None:
    small = run(config(f"celebdit://faces@{stored.digest}", name="small", image_px=16), context)
    assert (small.image_px, small.num_images, small.accepted) == (16, 12, {"resized": 12})
    assert small.source == f"celebdit://faces@{stored.digest}"
    assert any(f"resized from 32 pixels as they were stored, {'cropped and resized once already'}" in note for note in notes(context))
    by_address = run(config(f"{context.layout.locate(stored.uri)}/", name="small", image_px=16), context)
    assert by_address.digest == small.digest
    assert run(config(f"celebdit://faces@{stored.digest[:12]}", name="small", image_px=16), context) == small
    assert not list((context.settings.work_dir / "downloads").rglob("*.tar"))


def test_the_same_size_and_split_give_the_same_dataset(context: StepContext, stored: DatasetManifest) -> None:
    assert stored.num_held_out > 0
    again = run(config(f"celebdit://faces@{stored.digest}", held_out=0.3), context)
    assert again.digest == stored.digest


def test_the_terms_of_a_stored_dataset_go_with_its_images(context: StepContext, stored: DatasetManifest) -> None:
    small = run(config(f"celebdit://faces@{stored.digest}", name="small", image_px=16), context)
    assert (small.licence, small.licence_accepted_by) == ("CelebA research", "Ada")
    own = run(config(str(context.layout.locate(stored.uri)), name="small", image_px=16, licence_accepted_by="Grace"), context)
    assert (own.licence, own.licence_accepted_by) == ("CelebA research", "Grace")


def test_stored_images_are_never_enlarged_and_what_is_not_stored_is_named(context: StepContext, stored: DatasetManifest) -> None:
    with pytest.raises(BadInput, match=r"has images of 32 pixels, data\.image_px is 64") as refused:
        run(config(f"celebdit://faces@{stored.digest}", image_px=64), context)
    assert stored.source in str(refused.value.hint)
    for source, message in (
        (f"celebdit://faces@{'0' * 64}", "does not exist or is damaged"),
        (f"celebdit://others@{stored.digest}", "does not exist or is damaged"),
        ("celebdit://faces", "is not a stored dataset"),
        ("celebdit://../x@0123456789", "is not a stored dataset"),
    ):
        with pytest.raises(BadInput, match=message):
            run(config(source), context)


@pytest.mark.parametrize("damage", ["shard", "image"])
def test_a_damaged_stored_dataset_gives_no_other(context: StepContext, stored: DatasetManifest, damage: str, rclone_folder: Path) -> None:
    location = context.layout.locate(stored.uri)
    if damage == "shard":
        context.store.put_bytes(location / stored.shards[0].name, b"another")
    else:  # a shard that lost an image, with a manifest that says so
        shard = stored.shards[0].model_copy(update={"sha256": _write_shard_without_its_first(context, location / stored.shards[0].name)})
        context.store.put_bytes(location / "dataset.json", stored.model_copy(update={"shards": [shard]}).model_dump_json().encode())
    with pytest.raises(DataRefused, match=stored.shards[0].name if damage == "shard" else "have the dataset digest"):
        run(config(f"celebdit://faces@{stored.digest}", name="small", image_px=16), context)
    assert not context.store.list(context.layout.dataset("small"))


def _write_shard_without_its_first(context: StepContext, uri: StoreUri) -> str:
    rest = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(context.store.get_bytes(uri))) as old, tarfile.open(fileobj=rest, mode="w") as new:
        for entry in old.getmembers()[2:]:
            new.addfile(entry, old.extractfile(entry))
    return context.store.put_bytes(uri, rest.getvalue())


def test_tars_and_parquet_files_below_a_prefix_are_one_source(context: StepContext, prefix: StoreUri, tmp_path: Path) -> None:
    for name, data in {
        "a.tar": tar_of({"0.jpg": FACES[0], "1.jpg": FACES[1]}),
        "b.parquet": parquet_of(FACES[2:5]),
        "c.parquet": parquet_of(FACES[5:]),
        "README.md": b"# Faces",
    }.items():
        context.store.put_bytes(prefix / "in" / name, data)
    loose = tmp_path / "loose"
    loose.mkdir()
    for index, data in enumerate(FACES):
        (loose / f"{index}").write_bytes(data)
    wait_until_settled(context.store, prefix / "in")
    manifest = run(config(f"{prefix}/in"), context)
    assert (manifest.num_images, manifest.ignored) == (8, 1)
    assert manifest.digest == run(config(str(loose)), context).digest
    assert not [path for path in (context.settings.work_dir / "downloads").rglob("*") if path.is_file()]


def test_a_bucket_is_read_by_content_and_without_what_programs_left(context: StepContext, prefix: StoreUri) -> None:
    data, others = ("a.jpg", "no-suffix", "b.jfif"), ("LICENCE", "@eaDir/a.jpg", ".thumbnails/b.jpg", "c.txt")
    for index, name in enumerate((*data, *others)):
        key = StoreUri(prefix.bucket, f"{prefix.key}/in/{name}")
        context.store.put_bytes(key, b"as is" if name == "LICENCE" else FACES[index])
    wait_until_settled(context.store, prefix / "in")
    manifest = run(config(f"{prefix}/in/"), context)
    assert (manifest.num_images, manifest.ignored, manifest.rejected) == (3, 4, {})


def photo(seed: int) -> Image.Image:
    return Image.frombytes("RGB", (12, 12), random.Random(seed).randbytes(432)).resize((256, 256), Image.Resampling.BICUBIC)


def test_thumbnails_of_images_that_are_there_are_proposed_to_be_dropped(context: StepContext, tmp_path: Path) -> None:
    for seed in range(30):
        image = photo(seed)
        for name, side_px in ((f"{seed}.jpg", 256), (f"small/{seed}.jpg", 128)):
            if side_px == 256 or seed < 10:
                path = tmp_path / "photos" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                image.resize((side_px, side_px)).save(path, quality=85)
    everything = run(config(str(tmp_path / "photos"), image_px=64), context)
    assert everything.num_images == 40
    (proposal,) = [note for note in notes(context) if "look like smaller copies" in note]
    assert 8 <= int(proposal.split(" ")[0]) <= 10
    assert "data.near_duplicate_bits=4" in proposal
    report = context.store.get_bytes(context.layout.locate(everything.uri) / "report.html").decode()
    assert "Smaller copies" in report
    assert "small/" in report
    dropped = run(config(str(tmp_path / "photos"), image_px=64, near_duplicate_bits=4, max_rejected=0.5), context)
    assert (dropped.num_images, dropped.rejected) == (30, {"near_duplicate": 10})
    originals = tmp_path / "originals"
    originals.mkdir()
    for seed in range(30):
        (originals / f"{seed}.jpg").write_bytes((tmp_path / "photos" / f"{seed}.jpg").read_bytes())
    assert run(config(str(originals), image_px=64), context).digest == dropped.digest, "the originals are kept, not the thumbnails"


def test_what_is_left_out_is_said_with_reasons(context: StepContext, tmp_path: Path) -> None:
    names = [*(f"{index}.jpg" for index in range(4)), *(f"@eaDir/{index}.jpg" for index in range(3)), ".Trash-1000/files/x.jpg", "a.txt"]
    for index, name in enumerate(names):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(encode_face(0, index, 32))
    manifest = run(config(str(tmp_path / "tree")), context)
    assert (manifest.num_images, manifest.ignored) == (4, 5)
    (note,) = [note for note in notes(context) if "are left out" in note]
    assert note.startswith("5 of 9 files are left out (3 in @eaDir, a folder of thumbnails, deleted files or copies; 1 ")
    report = context.store.get_bytes(context.layout.locate(manifest.uri) / "report.html").decode()
    assert "in .Trash-1000, a hidden folder" in report


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = {f"data/train-{part:05d}-of-00002.parquet": parquet_of(FACES[part * 4 : part * 4 + 4]) for part in range(2)}
    with using_hub({**files, "README.md": b"---\nlicense: other"}, tmp_path / "hf") as server:
        yield server


def test_the_hubs_parquet_files_become_a_dataset_whose_licence_is_accepted(hub: Hub, context: StepContext) -> None:
    source = f"hf://datasets/{NAME}"
    with pytest.raises(BadInput, match="must be accepted before its images are ingested"):
        run(config(source), context)
    assert hub.requests == []
    manifest = run(config(source, licence_accepted_by="Ada"), context)
    assert (manifest.num_images, manifest.ignored) == (8, 1)
    assert manifest.source == f"hf://datasets/{NAME}@{COMMIT}"
    assert sorted(hub.downloads) == [f"data/train-{part:05d}-of-00002.parquet" for part in range(2)]
    assert not [path for path in (context.settings.work_dir / "downloads").rglob("*") if path.is_file()]
    hub.downloads.clear()
    assert run(config(f"{source}@{COMMIT}", licence_accepted_by="Ada"), context).digest == manifest.digest
    assert hub.downloads == [], "a commit that was ingested is not downloaded again"
