"""Features of the dataset's images: computed once, stored, and fetched by later evaluations.

Layout: `references/<dataset>/<extractor>/<which images, how processed>/`: `moments.npy` (mean and covariance, float64), `features.npy`,
`mirrored.npy` (of the mirrored images, which a model trained with flips may copy), `manifold.npy` if precision and recall have features of
their own, and `reference.json`, written last, with their sha256. Promises: stored features belong to the same bytes, extractor weights,
split, flip, codec and count; a corrupt or incomplete entry is computed again.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from components.errors import DataRefused
from components.evaluate.spec import EvaluateSpec
from components.features.moments import Statistics, statistics
from components.storage import DigestMismatch, ObjectMissing, ObjectStore, StoreUri, file_sha256
from components.stores.layout import StoreLayout
from components.system.own_folder import partial_name
from model.canonical import canonical_json, digest_of

_MOMENTS, _FEATURES, _MIRRORED, _MANIFOLD, _NOTE = "moments.npy", "features.npy", "mirrored.npy", "manifold.npy", "reference.json"
_KEYS = {"num_reference", "reference_split", "reference_flip", "codec", "resize", "image_px", "dataset_digest"}


class ReferenceCorrupt(DataRefused):
    """Stored features are not those that their note names: compute them again."""


@dataclass(frozen=True)
class Reference:
    """The references' features; the moments are loaded, the features are fetched when they are first read."""

    store: ObjectStore
    home: StoreUri
    folder: Path
    sha256: dict[str, str]
    moments: Statistics

    @cached_property
    def features(self) -> np.ndarray:
        return _fetch_array(self.store, self.home, self.folder, _FEATURES, self.sha256)

    @cached_property
    def mirrored(self) -> np.ndarray:
        return _fetch_array(self.store, self.home, self.folder, _MIRRORED, self.sha256)

    @cached_property
    def manifold(self) -> np.ndarray:
        return _fetch_array(self.store, self.home, self.folder, _MANIFOLD, self.sha256) if _MANIFOLD in self.sha256 else self.features


def reference_uri(spec: EvaluateSpec, layout: StoreLayout) -> StoreUri:
    """Return where the references of an evaluation are stored."""
    treatment = spec.protocol.model_dump(mode="json", include=_KEYS) | {"manifold": spec.manifold_extractor_identity}
    return layout.reference(spec.dataset.digest[:32], spec.extractor_identity, digest_of(treatment)[:16])


def find_reference(store: ObjectStore, home: StoreUri, folder: Path) -> Reference | None:
    """Return the references below `home`, or None if they are missing, corrupt or incomplete; `folder` keeps a local copy."""
    try:
        sha256 = dict(json.loads(store.get_bytes(home / _NOTE))["sha256"])
        moments = _fetch_array(store, home, folder / home.name, _MOMENTS, sha256)
    except (ObjectMissing, ReferenceCorrupt, ValueError, KeyError, TypeError):
        return None
    mean, covariance = torch.from_numpy(np.array(moments[0])), torch.from_numpy(np.array(moments[1:]))
    return Reference(store, home, folder / home.name, sha256, Statistics(mean, covariance))


def keep_reference(
    store: ObjectStore, home: StoreUri, folder: Path, *, main: np.ndarray, mirrored: np.ndarray, manifold: np.ndarray | None
) -> Reference:
    """Store the features of the references with their moments, and return them."""
    moments = statistics(main)
    parts = {_MOMENTS: torch.cat([moments.mean[None], moments.covariance]).numpy(), _FEATURES: main, _MIRRORED: mirrored}
    if manifold is not None:
        parts[_MANIFOLD] = manifold
    local = folder / home.name
    local.mkdir(parents=True, exist_ok=True)
    sha256 = {}
    for name, rows in parts.items():
        partial = partial_name(local / name)
        with partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        partial.replace(local / name)
        sha256[name] = store.put_file(home / name, local / name)
    store.put_bytes(home / _NOTE, canonical_json({"sha256": sha256, "num_images": len(main)}))
    return Reference(store, home, local, sha256, moments)


def _fetch_array(store: ObjectStore, home: StoreUri, folder: Path, name: str, sha256: dict[str, str]) -> np.ndarray:
    path = folder / name
    if not (path.exists() and file_sha256(path) == sha256[name]):
        try:
            store.get_file(home / name, path, sha256=sha256[name])
        except (ObjectMissing, DigestMismatch) as problem:
            raise ReferenceCorrupt(problem.message) from problem
    return np.load(path, mmap_mode="r", allow_pickle=False)
