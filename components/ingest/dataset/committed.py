"""Finished datasets: found, verified, and moved out of the way if they are damaged.

Promises: a dataset is finished only if every object of it is there with the bytes that its manifest names, and its digest follows from its
images; a damaged one is reported and moved to quarantine, so that it can be made again at its place.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from components.errors import DataRefused
from components.ingest.dataset.publish import REPORT, TABLE
from components.manifests import DatasetManifest, Shard
from components.reports.listing import list_some
from components.runtime.context import StepContext
from components.storage import ObjectMissing, StoreUri
from components.stores.checksums import damaged_objects
from components.stores.dataset_content import MANIFEST, Member, read_shard, sort_members
from components.stores.quarantine import quarantine
from components.system.own_folder import own_folder
from components.system.work_folders import WorkFolder

_PARALLEL_SHARDS = 4


@dataclass(frozen=True)
class _Damage:
    """Why a dataset is not usable, and the objects that are not what they must be."""

    reason: str
    objects: Sequence[StoreUri]


def finished_dataset(location: StoreUri, context: StepContext, *, damaged: set[StoreUri]) -> DatasetManifest | None:
    """Return the dataset at `location` if it is committed and intact.

    What is damaged of it is moved to quarantine, and `location` is added to `damaged`; one that is in it already is not read again.
    """
    if location in damaged:
        return None
    try:
        raw = context.store.get_bytes(location / MANIFEST)
    except ObjectMissing:
        return None
    manifest, damage = None, None
    try:
        manifest = DatasetManifest.parse(raw, origin=str(location / MANIFEST))
    except DataRefused as problem:
        damage = _Damage(problem.message, [location / MANIFEST])
    if manifest is not None:
        damage = _damage_of(manifest, location, context)
    if damage is None:
        assert manifest is not None, "a manifest without damage was read"
        return manifest.model_copy(update={"uri": context.layout.key_of(location)})
    damaged.add(location)
    kept = quarantine(damage.objects, damage.reason, store=context.store, layout=context.layout)
    moved = "" if kept is None else f"; what is left of it was moved to {kept}"
    context.events.note(f"the dataset at {location} is damaged and is made again: {damage.reason}{moved}")
    return None


def _damage_of(manifest: DatasetManifest, location: StoreUri, context: StepContext) -> _Damage | None:
    """Return what is wrong with a dataset, or None after every byte of it was verified."""
    if manifest.digest != location.name:
        return _Damage(f"{location / MANIFEST} is the manifest of {manifest.uri}, digest {manifest.digest}", [location / MANIFEST])
    store = context.store
    damaged = damaged_objects(location, [REPORT], store=store, layout=context.layout)
    try:
        store.check(location / TABLE, manifest.table_sha256)
    except DataRefused as problem:
        damaged[TABLE] = problem.message
    members: list[Member] = []
    with own_folder(context.scratch(WorkFolder.VERIFY), manifest.digest[:16]) as folder, ThreadPoolExecutor(_PARALLEL_SHARDS) as pool:

        def read(shard: Shard) -> list[Member]:
            path = folder / shard.name
            store.get_file(location / shard.name, path, sha256=shard.sha256)
            try:
                return list(read_shard(path))
            finally:
                path.unlink()  # only a few shards are on local disk at a time

        for shard, future in [(shard, pool.submit(read, shard)) for shard in manifest.shards]:
            try:
                members += future.result()
            except DataRefused as problem:
                damaged[shard.name] = problem.message
    if damaged:
        return _Damage(list_some(damaged.values(), most=5, separator="; "), [location / name for name in damaged])
    try:
        sort_members(members, manifest)
    except DataRefused as problem:
        return _Damage(problem.message, [item.uri for item in store.list(location)])
    return None
