"""The ingest step: source -> judged images -> tar shards, table and manifest in object storage, content-addressed.

Promises: the digest is a function of the accepted images only, whatever the source's kind and order; `dataset.json` is written last, so a
data set is complete or absent; the same source and settings a second time is a no-op. Judging one image is done in `images.py`.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from components.context import StepContext
from components.errors import DataRefused
from components.ingest.config import DataConfig
from components.ingest.images import Accepted, Rejected, judge
from components.ingest.shards import ShardWriter
from components.ingest.sources import Source, open_source, require_consent
from components.manifests import DatasetManifest, Shard, digest_of
from components.storage import ObjectMissing, StoreUri, file_sha256

MANIFEST = "dataset.json"
TABLE = "manifest.parquet"


@dataclass
class _Collected:
    """What has been seen of a source so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    digests: set[str] = field(default_factory=set)


def run(config: DataConfig, context: StepContext) -> DatasetManifest:
    """Ingest `config.source` and return the manifest of the committed data set.

    Raises:
        BadInput: if the source cannot be read, or its licence was not accepted.
        DataRefused: if too few images are accepted, or too many rejected.
    """
    require_consent(config)
    source = open_source(config)
    context.events.note(f"reading {config.source}")
    request = digest_of({"source": source.fingerprint(), "config": config.model_dump(mode="json", exclude={"source"})})
    home = context.root / "datasets" / config.name
    receipt = home / "requests" / f"{request}.json"
    if (finished := _finished(context, receipt)) is not None:
        context.events.note(f"data set {finished.digest[:12]} is there already: {finished.num_images} images, nothing to do")
        return finished
    staging = context.scratch("ingest", request[:16])
    shutil.rmtree(staging, ignore_errors=True)
    collected, shards = _collect(source, config, context, staging)
    _check_limits(config, collected)
    manifest = _commit(config, context, home, staging, collected, shards)
    context.store.put_bytes(receipt, manifest.model_dump_json().encode())
    shutil.rmtree(staging, ignore_errors=True)
    context.events.note(f"data set {manifest.digest[:12]}: {manifest.num_images} images in {len(manifest.shards)} shards at {manifest.uri}")
    return manifest


def dataset_digest(image_px: int, image_digests: Iterable[str]) -> str:
    """Return the identity of a data set: a function of the stored images' bytes and nothing else."""
    return digest_of({"format": 1, "image_px": image_px, "images": sorted(image_digests)})


def _finished(context: StepContext, receipt: StoreUri) -> DatasetManifest | None:
    """Return the data set that an earlier run made from the same request, if it is still whole."""
    try:
        manifest = DatasetManifest.parse(context.store.get_bytes(receipt), origin=str(receipt))
        committed = StoreUri.parse(manifest.uri) / MANIFEST
        if DatasetManifest.parse(context.store.get_bytes(committed), origin=str(committed)).digest != manifest.digest:
            return None
    except (ObjectMissing, DataRefused):
        return None
    sizes = {item.uri.name: item.size_bytes for item in context.store.list(StoreUri.parse(manifest.uri))}
    return manifest if all(sizes.get(shard.name) == shard.size_bytes for shard in manifest.shards) else None


def _collect(source: Source, config: DataConfig, context: StepContext, staging: Path) -> tuple[_Collected, list[Shard]]:
    """Judge every candidate and write the accepted ones into local shards."""
    collected, total = _Collected(), source.count()
    writer = ShardWriter(staging, shard_bytes=config.shard_bytes)
    try:
        for number, candidate in enumerate(source.candidates(max_bytes=config.max_image_bytes), start=1):
            verdict = judge(candidate.data, config)
            if isinstance(verdict, Accepted) and verdict.sha256 in collected.digests:
                verdict = Rejected("duplicate", "the same bytes as an image before")
            _take(collected, writer, config, candidate.name, verdict)
            context.events.progress(number, total or number, f"{sum(collected.rejected.values())} rejected")
    except OSError as error:
        raise DataRefused(
            f"shards cannot be written to {staging}: {error.strerror}", hint="free disk space, or set CELEBDIT_WORK_DIR"
        ) from error
    finally:
        writer.close()
    shards = [
        Shard(name=path.name, sha256=file_sha256(path), size_bytes=path.stat().st_size, num_images=count)
        for path, count in zip(writer.paths, writer.counts, strict=True)
    ]
    return collected, shards


def _take(collected: _Collected, writer: ShardWriter, config: DataConfig, name: str, verdict: Accepted | Rejected) -> None:
    if isinstance(verdict, Rejected):
        collected.rejected[verdict.code] += 1
        collected.rows.append({"source_name": name, "verdict": verdict.code, "detail": verdict.detail})
        return
    collected.digests.add(verdict.sha256)
    split = "held_out" if int(verdict.sha256[:8], 16) / 2**32 < config.held_out else "train"
    placed = writer.add(
        verdict, {"key": verdict.key, "sha256": verdict.sha256, "source_name": name, "rules": verdict.rules, "split": split}
    )
    row: dict[str, Any] = {
        "key": verdict.key,
        "sha256": verdict.sha256,
        "source_name": name,
        "verdict": "+".join(verdict.rules),
        "width": verdict.source_px[0],
        "height": verdict.source_px[1],
        "format": verdict.extension,
        "shard": placed.shard,
        "offset": placed.offset,
        "size_bytes": placed.size_bytes,
        "split": split,
    }
    row |= {
        f"{what}_{channel}": value
        for what, triple in (("mean", verdict.mean), ("std", verdict.std))
        for channel, value in zip("rgb", triple, strict=True)
    }
    collected.rows.append(row)


def _check_limits(config: DataConfig, collected: _Collected) -> None:
    accepted, rejected = len(collected.digests), sum(collected.rejected.values())
    reasons = ", ".join(f"{code} {count}" for code, count in collected.rejected.most_common()) or "none rejected"
    if accepted < config.min_images:
        raise DataRefused(
            f"{accepted} images were accepted, data.min_images is {config.min_images} ({reasons})",
            hint="check data.source, or lower data.min_images",
        )
    if rejected / (accepted + rejected) > config.max_rejected:
        raise DataRefused(
            f"{rejected} of {accepted + rejected} images were rejected, data.max_rejected is {config.max_rejected:g} ({reasons})",
            hint="clean the source, or raise data.max_rejected",
        )


def _commit(
    config: DataConfig, context: StepContext, home: StoreUri, staging: Path, collected: _Collected, shards: list[Shard]
) -> DatasetManifest:
    """Upload shards and table, then the manifest that makes them a data set."""
    digest = dataset_digest(config.image_px, collected.digests)
    location = home / digest
    table = staging / TABLE
    pd.DataFrame(collected.rows).sort_values(["sha256", "source_name"], na_position="last").to_parquet(table, index=False)
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda shard: context.store.put_file(location / shard.name, staging / shard.name), shards))
    context.store.put_file(location / TABLE, table)
    splits = Counter(row.get("split") for row in collected.rows)
    manifest = DatasetManifest(
        name=config.name,
        uri=str(location),
        digest=digest,
        image_px=config.image_px,
        num_images=splits["train"],
        num_held_out=splits["held_out"],
        rejected=dict(sorted(collected.rejected.items())),
        licence=config.licence,
        licence_accepted_by=config.licence_accepted_by or "not required",
        source=config.source,
        shards=shards,
        table_sha256=hashlib.sha256(table.read_bytes()).hexdigest(),
        tools={name: version(name) for name in ("pillow", "pandas", "celebdit")},
    )
    context.store.put_bytes(location / MANIFEST, manifest.model_dump_json().encode())
    return manifest
