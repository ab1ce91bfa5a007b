"""Ingest is killed at any moment and run again: the same digest, and nothing half-made that a reader could see."""

import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from celebdit_testing.faults import Fault, fault_proxy
from celebdit_testing.steps import keys_below, step_context

from components.errors import StorageUnavailable
from components.ingest.config import DataConfig
from components.ingest.ingest import run
from components.ingest.sources.synthetic import write_archive
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.storage import ObjectStore, StoreUri, connect
from components.stores.dataset_cache import fetch_pack
from components.stores.layout import StoreLayout

pytestmark = [pytest.mark.fault, pytest.mark.slow]

INGEST = """
import sys
from pathlib import Path
from celebdit_testing.steps import step_context
from components.ingest.config import DataConfig
from components.ingest.ingest import run

source, folder, store_uri, endpoint = sys.argv[1:]
context = step_context("ingest", Path(folder), store_uri, endpoint=endpoint)
print("ready", flush=True)
manifest = run(DataConfig(name="faces", source=source, image_px=64, shard_bytes=2**20), context, workers=2)
print(manifest.digest, flush=True)
"""
FACES = 400


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "faces.zip"
    write_archive(path, count=FACES, seed=0, image_px=96)
    return path


def config(archive: Path) -> DataConfig:
    return DataConfig(name="faces", source=str(archive), image_px=64, shard_bytes=2**20)


def visible(store: ObjectStore, home: StoreUri) -> list[DatasetManifest]:
    """Return every committed dataset, each verified byte by byte."""
    manifests = []
    for item in store.list(home):
        if item.uri.name == "dataset.json":
            manifest = DatasetManifest.parse(store.get_bytes(item.uri), origin=str(item.uri))
            for shard in manifest.shards:
                store.get_bytes(StoreLayout(home).locate(manifest.uri) / shard.name, sha256=shard.sha256)
            manifests.append(manifest)
    return manifests


def staged_in(folder: Path) -> list[str]:
    return (
        [entry.name for entry in (folder / "work" / "ingest").iterdir() if entry.is_dir()] if (folder / "work" / "ingest").exists() else []
    )


def start(archive: Path, folder: Path, prefix: StoreUri, endpoint: str) -> "subprocess.Popen[str]":
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", INGEST, str(archive), str(folder), str(prefix), endpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def reached(moment: int | str, folder: Path, objects: Path) -> bool:
    """Say whether ingest has judged so many images, or stored an object of that name."""
    if isinstance(moment, str):
        return any(objects.rglob(moment))
    events = folder / "events.jsonl"
    done = re.findall(r'"done": (\d+)', events.read_text()) if events.exists() else []
    return bool(done) and int(done[-1]) >= moment


MOMENTS: list[int | str] = [
    1,
    100,
    200,
    300,
    FACES,
    "shard-00000.tar",
    "shard-00001.tar",
    "manifest.parquet",
    "report.html",
    "dataset.json",
]


@pytest.mark.timeout(900)
def test_killed_at_random_moments_and_run_again_it_ends_with_the_same_data_set(
    archive: Path, tmp_path: Path, prefix: StoreUri, rclone_endpoint: str, rclone_folder: Path
) -> None:
    store = connect(rclone_endpoint)
    reference = run(config(archive), step_context("ingest", tmp_path / "reference", str(prefix / "reference"), endpoint=rclone_endpoint))
    draw, committed_at_kill = random.Random(0), []
    for attempt in range(4):
        home, folder = prefix / f"killed-{attempt}", tmp_path / f"killed-{attempt}"
        for moment in sorted(draw.sample(MOMENTS, 2), key=MOMENTS.index):
            process = start(archive, folder, home, rclone_endpoint)
            while process.poll() is None and not reached(moment, folder, rclone_folder / home.bucket / home.key):
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.1))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            committed = visible(store, home)
            assert [manifest.digest for manifest in committed] in ([], [reference.digest])
            committed_at_kill.append(bool(committed))
        process = start(archive, folder, home, rclone_endpoint)
        out, _ = process.communicate(timeout=120)
        assert out.strip() == reference.digest
        stored, expected = (StoreLayout(root).locate(reference.uri) for root in (home, prefix / "reference"))
        assert keys_below(store, stored) == keys_below(store, expected) != []
        assert [manifest.shards for manifest in visible(store, home)] == [reference.shards]
        assert staged_in(folder) == []
    assert False in committed_at_kill, "no kill came before the end"


CRASHES = ["shard-00000.tar", "shard-00001.tar", "manifest.parquet", "report.html", "dataset.json", "requests/"]


@pytest.mark.parametrize("crash_at", CRASHES)
def test_whatever_upload_it_dies_at_nothing_half_made_is_visible(
    archive: Path, tmp_path: Path, prefix: StoreUri, rclone_endpoint: str, crash_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(rclone_endpoint) as proxy:
        context = step_context("ingest", tmp_path, str(prefix), endpoint=rclone_endpoint)
        monkeypatch.setattr(type(context), "store", connect(proxy.endpoint, deadline_s=0.3))
        context.store.upload_check(prefix / "warm")
        with proxy.injecting(fault := Fault("503", "PUT", times=10**6, path=crash_at)):
            with pytest.raises(StorageUnavailable):
                run(config(archive), context)
            assert fault.fired >= 1
            fault.times = fault.fired
        store = connect(rclone_endpoint)
        assert len(visible(store, prefix)) == (1 if crash_at == "requests/" else 0)
        manifest = run(config(archive), context)
        assert visible(store, prefix) == [manifest]
        assert manifest.num_images == FACES
        expected = ["dataset.json", "manifest.parquet", "report.html", *[shard.name for shard in manifest.shards]]
        assert keys_below(store, context.layout.locate(manifest.uri)) == expected


def test_two_ingests_at_once_make_one_data_set(archive: Path, tmp_path: Path, prefix: StoreUri, rclone_endpoint: str) -> None:
    shared = [start(archive, tmp_path / "shared", prefix, rclone_endpoint) for _ in range(2)]
    apart = start(archive, tmp_path / "apart", prefix, rclone_endpoint)
    digests = {process.communicate(timeout=120)[0].strip() for process in (*shared, apart)}
    store = connect(rclone_endpoint)
    (manifest,) = visible(store, prefix)
    assert digests == {manifest.digest}
    events = (tmp_path / "shared" / "events.jsonl").read_text()
    assert "nothing to do" in events


def test_a_reader_of_what_was_ingested_gets_every_image(archive: Path, tmp_path: Path, prefix: StoreUri, rclone_endpoint: str) -> None:
    context: StepContext = step_context("ingest", tmp_path, str(prefix), endpoint=rclone_endpoint)
    manifest = run(config(archive), context)
    assert len(manifest.shards) > 1
    assert len(fetch_pack(manifest, context.store, tmp_path / "packs", layout=context.layout)) == FACES
    first = context.layout.locate(manifest.uri) / manifest.shards[0].name
    context.store.get_file(first, tmp_path / "shard.tar", sha256=manifest.shards[0].sha256)
    with tarfile.open(tmp_path / "shard.tar") as tar:
        names = tar.getnames()
    assert len(names) == 2 * manifest.shards[0].num_images
    assert names == sorted(names, key=lambda name: (name.split(".")[0], name.endswith(".json")))
