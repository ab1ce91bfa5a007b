"""Publish a dataset: write and upload its shards, table and report, and commit it with `dataset.json`, which is written last."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from components.ingest.config import DataConfig
from components.ingest.dataset.ledger import Ledger
from components.ingest.dataset.report import write_report
from components.ingest.dataset.shards import FinishedShard, ShardWriter
from components.ingest.dataset.table import write_table
from components.manifests import LICENCE_NOT_REQUIRED, DatasetManifest, Shard
from components.storage import ObjectStore, StoreUri, file_sha256
from components.stores.checksums import record_checksums
from components.stores.dataset_content import MANIFEST
from components.stores.layout import StoreLayout

TABLE = "manifest.parquet"
REPORT = "report.html"
_PARALLEL_SHARDS = 1  # each is uploaded in parallel parts; more shards would only take more memory


def publish(
    ledger: Ledger,
    config: DataConfig,
    *,
    source: str,
    store: ObjectStore,
    layout: StoreLayout,
    location: StoreUri,
    staging: Path,
    thumbnail: Callable[[bytes], bytes],
) -> DatasetManifest:
    """Upload shards, table and report to `location`, then the manifest that commits them.

    `source` is recorded in the manifest; `thumbnail` makes a small JPEG of an image's bytes. Files are written to `staging` first.
    """
    table, report = staging / TABLE, staging / REPORT
    with _ShardUploads(staging / "shards", store, location) as uploads:
        _write_shards(ledger, config.shard_bytes, uploads)
        write_table(ledger, table)
    splits = dict(ledger.rows("SELECT split, COUNT(*) FROM images GROUP BY split"))
    rules = dict(ledger.rows("SELECT verdict, COUNT(*) FROM seen WHERE accepted GROUP BY verdict ORDER BY verdict"))
    manifest = DatasetManifest(
        name=config.name,
        uri=layout.key_of(location),
        digest=location.name,
        image_px=config.image_px,
        num_images=splits.get("train", 0),
        num_held_out=splits.get("held_out", 0),
        accepted=rules,
        rejected=ledger.rejected,
        ignored=ledger.verdicts["ignored"],
        licence=config.licence,
        licence_accepted_by=accepted_by(config),
        source=source,
        shards=uploads.done,
        table_sha256=file_sha256(table),
        tools={name: version(name) for name in ("pillow", "numpy", "pyarrow", "celebdit")},
    )
    write_report(ledger, manifest, report, thumbnail=thumbnail)
    store.put_file(location / TABLE, table)
    record_checksums(location, {REPORT: store.put_file(location / REPORT, report)}, store=store, layout=layout)
    store.put_bytes(location / MANIFEST, manifest.model_dump_json().encode())
    return manifest


def accepted_by(config: DataConfig) -> str:
    """Return who accepted the licence, as the manifest records it."""
    return config.licence_accepted_by or LICENCE_NOT_REQUIRED


def _write_shards(ledger: Ledger, shard_bytes: int, uploads: "_ShardUploads") -> None:
    """Write the images into shards and upload each."""
    writer = ShardWriter(uploads.folder, shard_bytes=shard_bytes)
    for image in ledger.images():
        placed, finished = writer.add(image, ledger.data(image))
        ledger.place(image.sha256, placed.shard, placed.offset)
        if finished is not None:
            uploads.send(finished)
    if (last := writer.close()) is not None:
        uploads.send(last)


class _ShardUploads:
    """Upload shards while the next is written; only a few are on local disk at a time. Leaving the block waits for all."""

    def __init__(self, folder: Path, store: ObjectStore, location: StoreUri) -> None:
        self.folder = folder
        self.done: list[Shard] = []
        self._store = store
        self._location = location
        self._pending: deque[Future[Shard]] = deque()
        self._threads = ThreadPoolExecutor(_PARALLEL_SHARDS, thread_name_prefix="shards")

    def __enter__(self) -> "_ShardUploads":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while kind is None and self._pending:
                self.done.append(self._pending.popleft().result())
        finally:
            self._threads.shutdown(cancel_futures=True)

    def send(self, written: FinishedShard) -> None:
        self._pending.append(self._threads.submit(self._upload, written))
        if len(self._pending) > _PARALLEL_SHARDS:
            self.done.append(self._pending.popleft().result())

    def _upload(self, written: FinishedShard) -> Shard:
        path = self.folder / written.name
        sha256 = self._store.put_file(self._location / written.name, path)
        path.unlink()
        return Shard(name=written.name, sha256=sha256, size_bytes=written.size_bytes, num_images=written.num_images)
