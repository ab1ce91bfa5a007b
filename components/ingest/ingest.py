"""The ingest step: read a source, judge its images, write a content-addressed dataset to object storage.

Promises: the digest is a function of the accepted images and of their split, whatever the source's kind and order and the number of
workers; so are the shards, so that two ingests of the same images write the same bytes; `dataset.json` is written last, so that a
dataset is complete or absent; ingesting the same source with the same settings again changes nothing but what is damaged, which is made
again. A source that changes between its fingerprint and the verdicts on its images is refused.
"""

import errno
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from components.errors import DataRefused
from components.ingest.candidates import Source
from components.ingest.config import DataConfig
from components.ingest.dataset.acceptance import require_accepted
from components.ingest.dataset.committed import finished_dataset
from components.ingest.dataset.ledger import Ledger
from components.ingest.dataset.near_duplicates import near_duplicates
from components.ingest.dataset.publish import publish
from components.ingest.dataset.requests import has_same_terms, recorded_dataset, request_digest, request_uri
from components.ingest.dataset.smaller_copies import PROPOSED_BITS, smaller_copies
from components.ingest.decoding.pool import DecoderPool, default_workers
from components.ingest.sources.kinds import Reach
from components.ingest.sources.open_source import open_source, require_consent, with_terms_of
from components.ingest.verdicts import Rejected
from components.manifests import DatasetManifest
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.storage import ObjectStore, StoreUri
from components.stores.dataset_content import dataset_digest
from components.system.disk import DiskFull, is_full
from components.system.locks import lock, try_lock
from components.system.work_folders import WorkFolder

_SILENTLY_IGNORED = 0.1
_REASONS_SHOWN = 5
_DISK_TROUBLE = (errno.EROFS, errno.EIO, errno.EACCES)


@dataclass(frozen=True)
class _IngestJob:
    """Inputs of one ingest."""

    config: DataConfig
    context: StepContext
    staging: Path
    pool: DecoderPool
    damaged: set[StoreUri] = field(default_factory=set)
    """The datasets that were found damaged, which this ingest makes again."""

    @property
    def store(self) -> ObjectStore:
        return self.context.store

    @property
    def refusal(self) -> Path:
        """The page about images of which too few were accepted; it stays where it is written."""
        return self.context.scratch(WorkFolder.REFUSED) / f"{self.config.name}-{self.staging.name}.html"

    @property
    def home(self) -> StoreUri:
        return self.context.layout.dataset(self.config.name)


def run(config: DataConfig, context: StepContext, *, workers: int | None = None) -> DatasetManifest:
    """Ingest `config.source` and return the manifest of the committed dataset.

    Raises:
        BadInput: if the source cannot be read, or its licence was not accepted.
        DataRefused: if the source is corrupt, too few images are accepted, or too many rejected.
    """
    require_consent(config)
    local_source = open_source(config)
    source = local_source or open_source(config, _reach(context))
    assert source is not None, "with a reach every source is opened"
    config = with_terms_of(source, config)
    require_consent(config)
    context.events.note(f"reading {source.provenance()}")
    with DecoderPool(config.limits(), workers=workers or default_workers()) as pool:
        if local_source is not None and not any(context.store.list(context.layout.dataset(config.name))):
            pool.start(local_source.archive_path())  # while the source is fingerprinted: no dataset may turn out to be made of it
        return _ingest_once(source, config, context, pool)


def _reach(context: StepContext) -> Reach:
    return Reach(context.store, context.scratch(WorkFolder.DOWNLOADS), context.events.note, context.layout)


def _ingest_once(source: Source, config: DataConfig, context: StepContext, pool: DecoderPool) -> DatasetManifest:
    """Ingest `source` unless the same request was completed before."""
    request = request_digest(source, config)
    staging = context.scratch(WorkFolder.INGEST) / request[:16]
    job = _IngestJob(config, context, staging, pool)
    receipt = request_uri(request, config, context.layout)
    waiting = "another process is ingesting the same source; waiting for it"
    with lock(staging.with_suffix(".lock"), on_wait=lambda: context.events.note(waiting)):
        if (finished := _finished_dataset(job, receipt)) is not None:
            context.events.note(f"dataset {finished.digest[:12]} is complete: {plural(finished.num_images, 'image')}, nothing to do")
            return finished
        with _staging_folder(staging):
            manifest = _ingest(source, job)
        context.store.put_bytes(receipt, manifest.model_dump_json().encode())
    size = sum(shard.size_bytes for shard in manifest.shards)
    location = context.layout.locate(manifest.uri)
    context.events.note(f"dataset {manifest.digest[:12]}: {plural(manifest.num_images, 'image')}, {size / 1e6:.1f} MB, at {location}")
    return manifest


@contextmanager
def _staging_folder(staging: Path) -> Iterator[None]:
    """Provide an empty staging folder for the block; report a full disk as such."""
    _remove_leftovers(staging.parent)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if is_full(error, staging.parent):
            raise DiskFull.of(staging.parent, "the dataset") from error
        if isinstance(error, OSError) and error.errno not in _DISK_TROUBLE:
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise DataRefused(f"{staging} cannot be written: {reason}", hint="set CELEBDIT_WORK_DIR to a folder that can be written") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove staging folders that killed ingests left in `folder`."""
    for left in [entry for entry in folder.iterdir() if entry.is_dir()]:
        with try_lock(left.with_suffix(".lock")) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)


def _finished_dataset(job: _IngestJob, receipt: StoreUri) -> DatasetManifest | None:
    """Return the dataset that an earlier run made from the same request, if it is intact and still has the same terms."""
    made = recorded_dataset(receipt, job.config, job.store)
    return None if made is None else _existing_dataset(job, made.digest)


def _existing_dataset(job: _IngestJob, digest: str) -> DatasetManifest | None:
    existing = finished_dataset(job.home / digest, job.context, damaged=job.damaged)
    return existing if existing is not None and has_same_terms(existing, job.config) else None


def _ingest(source: Source, job: _IngestJob) -> DatasetManifest:
    config, pool, archive = job.config, job.pool, source.archive_path()
    pool.start(archive)
    with Ledger(job.staging, held_out=config.held_out, archive=archive) as ledger:
        _judge(source, ledger, job)
        source.require_unchanged()
        if config.near_duplicate_bits is not None:
            _drop_near_duplicates(ledger, config.near_duplicate_bits, pool.thumbnail)
        else:
            _propose_to_drop(ledger, job)
        require_accepted(config, ledger, report=job.refusal, thumbnail=pool.thumbnail)
        digest = dataset_digest(config.image_px, ledger.identities())
        if (existing := _existing_dataset(job, digest)) is not None:
            job.context.events.note("these images are a complete dataset already, from " + existing.source)
            return existing
        return publish(
            ledger,
            config,
            source=source.provenance(),
            store=job.store,
            layout=job.context.layout,
            location=job.home / digest,
            staging=job.staging,
            thumbnail=job.pool.thumbnail,
        )


def _judge(source: Source, ledger: Ledger, job: _IngestJob) -> None:
    """Judge every candidate and record the verdicts."""
    for number, (candidate, verdict) in enumerate(job.pool.judge(source.candidates(job.config.budget())), start=1):
        ledger.record(candidate.name, verdict)
        if number % 32:
            continue
        total, judged = source.count(), number - ledger.verdicts["ignored"]
        if total is None or judged < total:
            rejected = sum(count for code, count in ledger.verdicts.items() if code != "ignored")
            job.context.events.progress(judged, total, f"images, {rejected} rejected")
    seen, ignored = ledger.value("SELECT COUNT(*) FROM seen"), ledger.verdicts["ignored"]
    job.context.events.progress(seen - ignored, seen - ignored, f"images, {sum(ledger.rejected.values())} rejected")
    if ignored > _SILENTLY_IGNORED * seen:
        reasons = "; ".join(f"{count} {reason}" for reason, count in ledger.ignored_reasons(shown=_REASONS_SHOWN))
        job.context.events.note(f"{ignored} of {seen} files are left out ({reasons}); the report lists them")


def _drop_near_duplicates(ledger: Ledger, bits: int, thumbnail: Callable[[bytes], bytes]) -> None:
    rows = ledger.rows(
        "SELECT i.sha256, i.perceptual_hash FROM images i JOIN seen s USING (n) ORDER BY s.width * s.height DESC, i.sha256"
    )  # a thumbnail is dropped, and not the image that it was made from
    hashes = ((sha256, int(phash, 16)) for sha256, phash in rows)
    for sha256, twin in near_duplicates(hashes, bits=bits):
        image = ledger.image(sha256)
        assert image is not None, "its hash was read from the same ledger"
        ledger.reject_accepted(sha256, Rejected("near_duplicate", f"looks like {twin[:20]}", thumbnail(ledger.data(image))))


def _propose_to_drop(ledger: Ledger, job: _IngestJob) -> None:
    """Say which images look like smaller copies of others."""
    number, examples = smaller_copies(ledger, shown=1)
    if number:
        example = f"{examples[0].name} of {examples[0].larger_name}"
        job.context.events.note(
            f"{number} of {ledger.accepted} images look like smaller copies of others, like {example}: drop them with "
            f"data.near_duplicate_bits={PROPOSED_BITS}; the report shows them"
        )
