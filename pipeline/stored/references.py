"""What refers to the runs and datasets of a store: trainings, students, registered versions, and work that is under way.

Promises: changes nothing. Of a run the newest specification that can be read counts; a run with damaged ones or those of another release
alone may have been trained on any dataset. A run without any is an imported checkpoint, or the rest of a deletion that was interrupted.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from components.errors import DataRefused
from components.registry.origins import RegisteredVersion, versions_by_run
from components.storage import ObjectStore, StoreUri
from components.stores.usage import StoredRun
from components.tracking.client import Run, Tracking
from components.tracking.tags import TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP
from components.train.spec import SPEC_FILE, TrainSpec

_PARALLEL = 16
_ATTEMPTS = "attempts"


@dataclass(frozen=True)
class References:
    """Who uses what; run keys are sorted."""

    trainings: Mapping[str, list[str]]
    """By the digest of a dataset, the runs that were trained on it."""
    students: Mapping[str, list[str]]
    """By the run key of a teacher, the runs that learn from it."""
    versions: Mapping[str, list[RegisteredVersion]]
    """By run key."""
    states: Mapping[str, str]
    """By run key, the state of its training in MLflow."""
    unknown: tuple[str, ...]
    """Runs whose specifications cannot be read, so that it is not known what they use; sorted."""

    def without(self, runs: Container[str]) -> "References":
        """Return the references of other runs than `runs` to datasets and teachers, known or not."""

        def others(users: Mapping[str, list[str]]) -> dict[str, list[str]]:
            left = {used: [key for key in keys if key not in runs] for used, keys in users.items()}
            return {used: keys for used, keys in left.items() if keys}

        unknown = tuple(key for key in self.unknown if key not in runs)
        return replace(self, trainings=others(self.trainings), students=others(self.students), unknown=unknown)


def read_references(runs: Mapping[str, StoredRun], store: ObjectStore, tracking: Tracking) -> References:
    """Look up what the runs of a store refer to, in the store and in MLflow."""
    trainings: dict[str, list[str]] = defaultdict(list)
    students: dict[str, list[str]] = defaultdict(list)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="specifications") as pool:
        stored = {key: uris for key, run in runs.items() if (uris := _spec_uris(run))}
        specs = dict(zip(stored, pool.map(lambda uris: _newest_spec(uris, store), stored.values()), strict=True))
    for key, spec in sorted(specs.items()):
        if spec is not None:
            trainings[spec.dataset.digest].append(key)
            if spec.teacher is not None:
                students[spec.teacher.run_key].append(key)
    states = {run.data.tags[TAG_RUN_KEY]: run.info.status for run in _active(tracking.search_all_runs({TAG_STEP: "train"}), TAG_RUN_KEY)}
    unknown = tuple(sorted(key for key, spec in specs.items() if spec is None))
    return References(dict(trainings), dict(students), versions_by_run(tracking), states, unknown)


def running_names(run_key: str, tracking: Tracking) -> list[str]:
    """Return the names of the MLflow runs that are under way with the training `run_key`: itself, its evaluations, its pipeline runs."""
    pipelines = [
        run
        for run in _active(tracking.search_all_runs({TAG_KIND: "pipeline"}), TAG_RUN_KEY)
        if run_key in run.data.tags[TAG_RUN_KEY].split(",")
    ]
    runs = [*pipelines, *_active(tracking.search_all_runs({TAG_RUN_KEY: run_key}), TAG_RUN_KEY)]
    return sorted({str(run.data.tags.get(TAG_RUN) or run.info.run_name) for run in runs if run.info.status == "RUNNING"})


def _active(runs: Iterable[Run], tag: str) -> list[Run]:
    """Return the runs that are not deleted in MLflow and have the tag, the newest last."""
    return sorted(
        (run for run in runs if run.info.lifecycle_stage == "active" and tag in run.data.tags), key=lambda run: run.info.start_time
    )


def _spec_uris(run: StoredRun) -> list[StoreUri]:
    """Return the specifications of all attempts, the newest first: names of attempts sort by time."""
    attempts = run.parts[_ATTEMPTS].objects if _ATTEMPTS in run.parts else []
    return sorted((item.uri for item in attempts if item.uri.name == SPEC_FILE), key=lambda uri: uri.key, reverse=True)


def _newest_spec(uris: Iterable[StoreUri], store: ObjectStore) -> TrainSpec | None:
    """Return the first specification that can be read."""
    for uri in uris:
        with suppress(DataRefused):
            return TrainSpec.parse(store.get_bytes(uri), origin=str(uri))
    return None
