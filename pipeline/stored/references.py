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
from components.tracking.tags import TAG_DATASET, TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP
from components.train.spec import SPEC_FILE, TrainSpec
from pipeline.sweeps.mlflow_log import TAG_STATUS, TAG_SWEEP
from pipeline.sweeps.standing import STOPPED

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
    """By run key, the state of its training in MLflow, or of the import of its checkpoint."""
    running: Mapping[str, list[str]]
    """By run key, what MLflow says is running and works with it: the training itself, its evaluations, its pipeline runs, its sweep."""
    readers: Mapping[str, list[str]]
    """By the digest of a dataset, the pipeline runs that MLflow says are running and that ingested it."""
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
    trainings_and_imports = [run for step in ("train", "import") for run in tracking.search_all_runs({TAG_STEP: step})]
    states = {run.data.tags[TAG_RUN_KEY]: run.info.status for run in _active(trainings_and_imports, TAG_RUN_KEY)}
    unknown = tuple(sorted(key for key, spec in specs.items() if spec is None))
    running = tracking.search_running_runs()
    return References(
        dict(trainings),
        dict(students),
        versions_by_run(tracking),
        states,
        running=_running_keys(running, tracking),
        readers=_readers(running, tracking),
        unknown=unknown,
    )


def _running_keys(running: Iterable[Run], tracking: Tracking) -> dict[str, list[str]]:
    """Return the names of the `running` runs by the run keys that they have; of a sweep those are the trials that may train on."""
    names: dict[str, set[str]] = defaultdict(set)
    for run in running:
        name = run.data.tags.get(TAG_RUN) or str(run.info.run_name)
        trials = _open_trials(run, tracking) if run.data.tags.get(TAG_KIND) == "sweep" else []
        for tags in (run.data.tags, *(trial.data.tags for trial in trials)):
            for key in tags.get(TAG_RUN_KEY, "").split(","):
                names[key].add(name)
    return {key: sorted(names[key]) for key in names if key}


def _open_trials(sweep: Run, tracking: Tracking) -> list[Run]:
    trials = tracking.search_all_runs({TAG_KIND: "trial", TAG_SWEEP: sweep.data.tags[TAG_SWEEP]})
    return [trial for trial in _active(trials, TAG_RUN_KEY) if trial.data.tags.get(TAG_STATUS) != STOPPED]


def _readers(running: Iterable[Run], tracking: Tracking) -> dict[str, list[str]]:
    """Return the names of the pipeline runs among the `running` ones by the dataset that they ingested, or used again."""
    pipelines = {run.data.tags.get(TAG_RUN) for run in running if run.data.tags.get(TAG_KIND) == "pipeline"}
    names: dict[str, set[str]] = defaultdict(set)
    for run in _active(tracking.search_all_runs({TAG_STEP: "ingest"}), TAG_DATASET) if pipelines else []:
        if (name := run.data.tags.get(TAG_RUN)) is not None and name in pipelines:
            names[run.data.tags[TAG_DATASET]].add(name)
    return {digest: sorted(names[digest]) for digest in names}


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
