"""A dataset of our own as a source, so that it can be had at a smaller image_px without its original: `celebdit://NAME@DIGEST`.

Promises: every shard and every image is verified before the new dataset is committed; the terms of the stored dataset go with its images.
What is lost is what the first ingest discarded: images come cropped and resized as they were stored, and are never enlarged.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.ingest.candidates import Candidate
from components.ingest.config import DataConfig
from components.ingest.image_formats import HEAD_BYTES, image_format
from components.ingest.limits import Budget
from components.ingest.sources.kinds import Reach, SourceKind
from components.manifests import LICENCE_NOT_REQUIRED, DatasetManifest
from components.reports.listing import list_some
from components.storage import ObjectMissing, StoreUri
from components.stores.dataset_content import MANIFEST, Member, read_shard, sort_members
from components.system.own_folder import own_folder

_ADDRESS = re.compile(r"([a-z0-9][a-z0-9-]{1,62})@([0-9a-f]{8,64})")
_EXAMPLE = "celebdit://NAME@DIGEST"
_SUFFIXES = {"JPEG": "jpg", "PNG": "png"}


class StoredDatasetSource:
    """The images of a committed dataset, as they were stored."""

    def __init__(self, manifest: DatasetManifest, location: StoreUri, image_px: int, reach: Reach) -> None:
        self.manifest = manifest
        self._location = location
        self._reach = reach
        self._members: list[Member] = []
        if image_px > manifest.image_px:
            raise BadInput(
                f"data.source {self.provenance()} has images of {manifest.image_px} pixels, data.image_px is {image_px}",
                hint=f"images are never enlarged: ingest the original again ({manifest.source})",
            )
        if image_px < manifest.image_px:
            reach.note(
                f"the images are resized from {manifest.image_px} pixels as they were stored, cropped and resized once already; "
                f"for one resize from the original ingest {manifest.source}"
            )

    def fingerprint(self) -> str:
        return hashlib.sha256(f"dataset {self.manifest.digest}".encode()).hexdigest()

    def count(self) -> int | None:
        return self.manifest.num_images + self.manifest.num_held_out

    def provenance(self) -> str:
        return f"celebdit://{self.manifest.name}@{self.manifest.digest}"

    def archive_path(self) -> Path | None:
        return None

    def candidates(self, budget: Budget) -> Iterator[Candidate]:
        self._members = []
        with own_folder(self._reach.downloads, self.manifest.digest[:16]) as folder:
            for shard in self.manifest.shards:
                path = folder / shard.name
                self._reach.store.get_file(self._location / shard.name, path, sha256=shard.sha256)
                members = list(read_shard(path))
                with path.open("rb") as file:
                    for member in members:
                        file.seek(member.offset)
                        data = file.read(member.size_bytes)
                        suffix = _SUFFIXES.get(image_format(data[:HEAD_BYTES]) or "", "image")
                        yield Candidate(f"{shard.name}/{member.key}.{suffix}", data)
                path.unlink()  # one shard is on local disk at a time
                self._members += members

    def require_unchanged(self) -> None:
        """Check that the images that were read are those that the dataset's digest names."""
        sort_members(self._members, self.manifest)

    def with_terms(self, config: DataConfig) -> DataConfig:
        """Return `config` with the licence of the stored dataset, and with who accepted it, where it names none."""
        changes = {}
        if config.licence == "unspecified":
            changes["licence"] = self.manifest.licence
        if config.licence_accepted_by is None and self.manifest.licence_accepted_by != LICENCE_NOT_REQUIRED:
            changes["licence_accepted_by"] = self.manifest.licence_accepted_by
        return config.model_copy(update=changes)


def dataset_at(location: StoreUri, image_px: int, reach: Reach) -> StoredDatasetSource | None:
    """Return the dataset at a location in object storage, or None if there is none of ours."""
    location = StoreUri(location.bucket, location.key.rstrip("/"))
    try:
        manifest = DatasetManifest.parse(reach.store.get_bytes(location / MANIFEST), origin=str(location / MANIFEST))
    except (ObjectMissing, DataRefused):
        return None
    return StoredDatasetSource(manifest, location, image_px, reach)


def open_stored_dataset(source: str, image_px: int, reach: Reach | None) -> StoredDatasetSource | None:
    """Open `celebdit://NAME@DIGEST` in the project's store; without `reach` only the form is checked.

    Raises:
        BadInput: if there is no such dataset, or more than one whose digest begins so, or its images are smaller than `image_px`.
    """
    match = _ADDRESS.fullmatch(source.partition("://")[2].rstrip("/"))
    if match is None:
        raise BadInput(f"data.source {source} is not a stored dataset", hint=f"write {_EXAMPLE}, as `celebdit ingest` prints them")
    if reach is None:
        return None
    assert reach.layout is not None, "the ingest step opens sources with its layout"
    name, digest = match.groups()
    home = reach.layout.dataset(name)
    stored = {item.uri.relative_to(home).split("/")[0] for item in reach.store.list(home) if item.uri.name == MANIFEST}
    chosen = sorted(known for known in stored if known.startswith(digest))
    dataset = dataset_at(home / chosen[0], image_px, reach) if len(chosen) == 1 else None
    if dataset is None:
        known = list_some(sorted(stored), most=4) or "none"
        problem = "does not exist or is damaged" if len(chosen) < 2 else f"names {len(chosen)} datasets"
        raise BadInput(f"data.source {source} {problem} at {home}", hint=f"stored there: {known}")
    return dataset


KIND = SourceKind(("celebdit",), _EXAMPLE, open_stored_dataset)
