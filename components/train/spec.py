"""Identity of a training run, and the job specification that the ranks read.

Promises: the run key is a function of the dataset, the recipe and the version of the training maths; the length of the run, its intervals
and its hardware do not enter it.
"""

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import Field, field_serializer

from components.errors import BadInput, DataRefused
from components.features.config import FeaturesConfig
from components.manifests import DatasetManifest, Manifest
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.storage import ObjectStore, StoreUri
from components.storage.reader import StoreReader
from components.stores.layout import RunLayout, StoreLayout
from model.canonical import JsonObject, digest_of
from model.config import Recipe

SPEC_FILE = "spec.json"
_ATTEMPT_FOLDER = re.compile(r"/(?:0-)?([0-9]{8}T[0-9]{6}(?:\.[0-9]{6})?)-[^/]+/")
_KEY_CHARACTERS = 16


class TrainSpec(Manifest, Recipe):
    """Everything that a rank needs besides its environment: recipe, dataset, attempt and hardware of one run."""

    kind: Literal["train-spec"] = "train-spec"
    run_key: str
    attempt: str
    dataset: DatasetManifest
    resources: ResourcesConfig
    features: FeaturesConfig | None = Field(None, exclude_if=lambda features: features is None)
    """What the scores of `training.score_every_steps` are measured on."""

    @field_serializer("resources")
    def _store_resources(self, resources: ResourcesConfig) -> JsonObject:
        return resources.stored_settings()


def store_spec(spec: TrainSpec, store: ObjectStore, layout: StoreLayout) -> StoreUri:
    """Store the specification of an attempt, for its nodes and for `celebdit sync`, and return its location; idempotent."""
    uri = layout.run(spec.run_key).attempts / spec.attempt / SPEC_FILE
    store.put_bytes(uri, spec.model_dump_json().encode())
    return uri


def newest_spec(run_key: str, context: StepContext) -> TrainSpec:
    """Return the specification of the newest attempt at the training `run_key` whose specification is intact.

    Raises:
        BadInput: if there is no such training. DataRefused: if all specifications are damaged.
    """
    spec = find_newest_spec(run_key, context.store, context.layout, note=context.events.note)
    if spec is None:
        prefix = context.layout.run(run_key).prefix
        raise BadInput(f"there is no training {run_key!r} in {prefix}", hint="name a run key as `celebdit run` prints it")
    return spec


def find_newest_spec(
    run_key: str, reader: StoreReader, layout: StoreLayout, *, note: Callable[[str], object] = lambda text: None
) -> TrainSpec | None:
    """Return the specification of the newest attempt at a training whose specification is intact; None if there is no attempt.

    Raises:
        DataRefused: if all specifications are damaged.
    """
    problem = None
    specs = sorted((item.uri for item in reader.list(layout.run(run_key).attempts) if item.uri.name == SPEC_FILE), key=lambda uri: uri.key)
    for uri in reversed(specs):
        try:
            return TrainSpec.parse(reader.get_bytes(uri), origin=str(uri))
        except DataRefused as refused:
            problem = refused
            note(f"the specification {uri} is damaged, the one before is used: {refused.message}")
    if problem is not None:
        raise problem
    return None


def new_attempt(run: RunLayout, reader: StoreReader, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """Return a name for an attempt at the training `run`, which sorts after those of all earlier attempts that stored something.

    Names begin with the time. Where the clock is behind the newest of them, because it was set back or is that of another machine, the name
    begins a microsecond after it. Names of former versions, which end with the second, sort by time as well.
    """
    now = clock().replace(tzinfo=None)
    homes = (run.attempts, run.checkpoints, run.snapshots)
    keys = (f"/{item.uri.relative_to(home)}" for home in homes for item in reader.list(home))
    newest = max((folder[1] for key in keys if (folder := _ATTEMPT_FOLDER.search(key)) is not None), default=None)
    if newest is not None:
        with suppress(ValueError, OverflowError):  # no time of a calendar
            now = max(now, datetime.fromisoformat(newest) + timedelta(microseconds=1))
    return f"{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}"


def run_key(identity: JsonObject) -> str:
    """Return the short digest that names a run in object storage and MLflow."""
    return digest_of(identity)[:_KEY_CHARACTERS]


def differences(saved: object, present: object, path: str = "") -> list[str]:
    """Return one line per field that differs, `section.field: saved -> present`."""
    if isinstance(saved, dict) and isinstance(present, dict):
        lines = []
        for key in sorted(set(saved) | set(present)):
            lines += differences(saved.get(key, "absent"), present.get(key, "absent"), f"{path}.{key}" if path else str(key))
        return lines
    return [] if saved == present else [f"{path}: {saved} -> {present}"]
