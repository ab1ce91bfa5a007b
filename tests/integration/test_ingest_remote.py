"""Sources that are elsewhere: object storage on real servers, and Kaggle through the real kagglehub."""

import builtins
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from celebdit_testing.faults import Fault, fault_proxy
from celebdit_testing.kaggle import Kaggle, kaggle_server
from celebdit_testing.steps import keys_below, notes, step_context

from components.errors import BadInput, CelebditError, DataRefused, StorageUnavailable, TemporaryFailure
from components.ingest.config import DataConfig
from components.ingest.ingest import run
from components.ingest.limits import Budget
from components.ingest.sources.kaggle import KaggleSource
from components.ingest.sources.kinds import Reach
from components.ingest.sources.synthetic import encode_face, write_archive
from components.runtime.context import StepContext
from components.storage import ObjectStore, StoreUri, connect

BUDGET = Budget(max_image_bytes=10**6, max_total_bytes=2**30, max_entries=1000, max_ratio=200)


def config(source: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"name": "faces", "source": source, "image_px": 32, **changes})


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_archive(tmp_path / "faces.zip", count=12, seed=0, image_px=32)
    return tmp_path / "faces.zip"


def context_of(store: ObjectStore, prefix: StoreUri, folder: Path) -> StepContext:
    return step_context("ingest", folder, str(prefix / "store"), endpoint=store.client.meta.endpoint_url)


def test_an_archive_and_a_prefix_in_object_storage_give_the_same_data_set(
    store: ObjectStore, prefix: StoreUri, archive: Path, tmp_path: Path
) -> None:
    context = context_of(store, prefix, tmp_path)
    store.put_file(prefix / "in" / "faces.zip", archive)
    for index in range(12):
        store.put_bytes(prefix / "in" / "loose" / f"{index}.jpg", encode_face(0, index, 32))
    store.put_bytes(prefix / "in" / "loose" / "notes.txt", b"hello")
    packed = run(config(f"{prefix}/in/faces.zip"), context)
    loose = run(config(f"{prefix}/in/loose/", name="loose"), context)
    assert (packed.digest, packed.num_images) == (loose.digest, 12)
    assert loose.ignored == 1
    assert loose.source == f"{prefix}/in/loose"
    assert run(config(f"{prefix}/in/loose", name="loose"), context).digest == packed.digest
    assert not [path for path in (context.settings.work_dir / "downloads").rglob("*") if path.is_file()]


def test_an_unchanged_archive_is_not_downloaded_again_and_a_changed_one_is(
    rclone_endpoint: str, prefix: StoreUri, archive: Path, tmp_path: Path
) -> None:
    with fault_proxy(rclone_endpoint) as proxy:
        store = connect(proxy.endpoint)
        context = context_of(store, prefix, tmp_path)
        uri = prefix / "in" / "faces.zip"
        store.put_file(uri, archive)
        first = run(config(str(uri)), context)
        with proxy.injecting():
            assert run(config(str(uri)), context) == first
        assert not [line for line in proxy.requests if line.startswith("GET") and line.endswith("faces.zip")]
        write_archive(archive, count=13, seed=0, image_px=32)
        store.put_file(uri, archive)
        assert run(config(str(uri)), context).num_images == 13


def test_a_broken_download_is_continued_by_the_next_run(
    rclone_endpoint: str, prefix: StoreUri, tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(rclone_endpoint) as proxy:
        store = connect(proxy.endpoint, deadline_s=0.1)
        context = context_of(store, prefix, tmp_path)
        monkeypatch.setattr(type(context), "store", store)
        uri = prefix / "in" / "faces.zip"
        store.put_file(uri, archive)
        with proxy.injecting(Fault("truncated", "GET", path="faces.zip")), pytest.raises(StorageUnavailable):
            run(config(str(uri)), context)
        assert keys_below(store, prefix / "store") == []
        with proxy.injecting():
            assert run(config(str(uri)), context).num_images == 12
        assert proxy.ranges == [f"bytes={archive.stat().st_size // 2}-"]


def test_a_location_that_is_not_there_or_refused_says_so(store: ObjectStore, prefix: StoreUri, tmp_path: Path, monkeypatch: Any) -> None:
    context = context_of(store, prefix, tmp_path)
    with pytest.raises(BadInput, match=r"nothing/here\.zip does not exist") as refused:
        run(config(f"{prefix}/nothing/here.zip"), context)
    assert refused.value.exit_code == 2
    store.put_bytes(prefix / "texts" / "readme.txt", b"no image")
    with pytest.raises(BadInput, match="contains no images"):
        run(config(f"{prefix}/texts/"), context)
    with pytest.raises(CelebditError, match="no-such-bucket"):
        run(config("s3://no-such-bucket/x/"), context)


def test_wrong_credentials_are_reported_without_showing_them(
    rclone_endpoint: str, prefix: StoreUri, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-value")
    with pytest.raises(BadInput, match="cannot be read: object storage answered") as refused:
        run(config(f"{prefix}/in/faces.zip"), context_of(connect(rclone_endpoint), prefix, tmp_path))
    assert "wrong-secret-value" not in refused.value.message + str(refused.value.hint)


def test_a_key_that_tries_to_escape_is_a_rejected_candidate(moto_endpoint: str, prefix: StoreUri, tmp_path: Path) -> None:
    store = connect(moto_endpoint)
    context = context_of(store, prefix, tmp_path)
    store.put_bytes(StoreUri(prefix.bucket, f"{prefix.key}/in/../../../evil.jpg"), encode_face(0, 0, 32))
    store.put_bytes(prefix / "in" / "good.jpg", encode_face(0, 1, 32))
    manifest = run(config(f"{prefix}/in/", max_rejected=0.5), context)
    assert (manifest.num_images, manifest.rejected) == (1, {"unsafe_name": 1})


@pytest.fixture
def kaggle(archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kaggle]:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / ".kaggle"))
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("padding.bin", np.random.default_rng(0).bytes(3 * 2**20))  # so that it does not arrive at once
    with kaggle_server(archive.read_bytes()) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def reach(s3_credentials: None, tmp_path: Path) -> Reach:
    return Reach(connect("http://127.0.0.1:9"), tmp_path / "downloads")


def names(source: KaggleSource) -> list[str]:
    return [candidate.name for candidate in source.candidates(BUDGET)]


def test_kagglehub_fetches_the_newest_version_and_it_is_recorded(kaggle: Kaggle, reach: Reach, tmp_path: Path) -> None:
    source = KaggleSource("owner/faces", reach)
    assert names(source) == [*(f"celeba_hq_256/{index:05d}.jpg" for index in range(12)), "padding.bin"]
    assert source.provenance() == "kaggle://owner/faces/versions/3"
    assert kaggle.requests == ["GetDataset", "DownloadDataset"]
    assert not [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()]


def test_a_pinned_version_that_was_ingested_asks_kaggle_nothing(
    kaggle: Kaggle, rclone_endpoint: str, prefix: StoreUri, tmp_path: Path, capfd: Any
) -> None:
    kaggle.token = "a-kaggle-token-0123456789"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAGGLE_API_TOKEN", kaggle.token)
        context = step_context("ingest", tmp_path, str(prefix), endpoint=rclone_endpoint)
        first = run(config("kaggle://owner/faces/versions/3"), context)
        kaggle.requests.clear()
        assert run(config("kaggle://owner/faces/versions/3"), context) == first
    assert first.source == "kaggle://owner/faces/versions/3"
    assert kaggle.requests == []
    assert any("nothing to do" in note for note in notes(context))
    events = "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")
    )
    assert kaggle.token not in events + "".join(capfd.readouterr())


def test_a_download_from_kaggle_that_breaks_off_is_continued(kaggle: Kaggle, reach: Reach) -> None:
    kaggle.cut_after_bytes = [1_500_000, 1_200_000]
    assert len(names(KaggleSource("owner/faces/versions/3", reach))) == 13
    assert kaggle.ranges == ["bytes=1048576-", "bytes=2097152-"]  # it writes whole megabytes


def test_another_run_continues_a_download_from_kaggle(kaggle: Kaggle, reach: Reach) -> None:
    kaggle.cut_after_bytes = [1_500_000]
    with pytest.raises(TemporaryFailure, match="Kaggle failed") as failure:
        names(KaggleSource("owner/faces/versions/3", reach, deadline_s=0.0))
    assert failure.value.exit_code == 75
    assert len(names(KaggleSource("owner/faces/versions/3", reach))) == 13
    assert kaggle.ranges == ["bytes=1048576-"]


def test_kaggle_being_busy_is_ridden_out(kaggle: Kaggle, reach: Reach) -> None:
    kaggle.statuses = [503, 500]
    assert len(names(KaggleSource("owner/faces/versions/3", reach))) == 13


@pytest.mark.fault
@pytest.mark.slow
def test_an_archive_that_is_not_what_kaggle_names_is_refused(kaggle: Kaggle, reach: Reach) -> None:
    kaggle.wrong_digests = 99
    with pytest.raises(DataRefused, match="arrives corrupt"):
        names(KaggleSource("owner/faces/versions/3", reach))
    kaggle.wrong_digests = 1
    assert len(names(KaggleSource("owner/faces/versions/3", reach))) == 13


def test_missing_and_refused_credentials_say_what_to_set(kaggle: Kaggle, reach: Reach, monkeypatch: pytest.MonkeyPatch) -> None:
    kaggle.token = "right-token"
    with pytest.raises(BadInput, match="asks for credentials for owner/faces, and none are set") as refused:
        names(KaggleSource("owner/faces", reach))
    assert "set KAGGLE_API_TOKEN" in str(refused.value.hint)
    assert "Secret celebdit-kaggle" in str(refused.value.hint)
    with monkeypatch.context() as half:
        half.setenv("KAGGLE_USERNAME", "somebody")
        with pytest.raises(BadInput, match=r"asks for credentials for owner/faces, and only KAGGLE_USERNAME is set"):
            names(KaggleSource("owner/faces", reach))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong-kaggle-token")
    with pytest.raises(BadInput, match=r"refuses owner/faces to these credentials \(401\)") as refused:
        names(KaggleSource("owner/faces", reach))
    assert "wrong-kaggle-token" not in refused.value.message + str(refused.value.hint)


def test_a_data_set_that_kaggle_does_not_have_is_named(kaggle: Kaggle, reach: Reach) -> None:
    with pytest.raises(BadInput, match="has no dataset owner/others"):
        names(KaggleSource("owner/others", reach))


def test_without_kagglehub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("kagglehub")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *arguments: Any, **label: Any) -> Any:
        if name.startswith("kagglehub"):
            raise ModuleNotFoundError(f"No module label {name!r}", name=name)
        return real(name, *arguments, **label)

    monkeypatch.setattr("components.ingest.sources.kaggle.import_module", without)
    with pytest.raises(BadInput, match="need the package kagglehub") as refused:
        KaggleSource("owner/faces", None)
    assert refused.value.hint == "make extras"
