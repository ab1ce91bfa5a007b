"""Trainings whose ranks are the worker's real code in processes of their own, forked from one that has torch loaded.

Starting a rank takes a fraction of a second instead of many, so that a test can kill dozens. What torchrun and the launcher add is tested
with the real ones elsewhere.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celebdit_testing.steps import step_context
from celebdit_testing.waiting import wait_until

from components.features.config import FeaturesConfig
from components.ingest.config import DataConfig
from components.ingest.ingest import run as ingest
from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.runtime.rank_failures import FAILURES, first_failure
from components.storage import StoreUri, connect
from components.stores.checkpoints import CheckpointStore
from components.stores.layout import RunLayout, StoreLayout
from components.system.ports import free_port
from components.tracking.journal import JOURNAL_FILE
from components.train.spec import TrainSpec, run_key
from model.config import Recipe

_FORK = multiprocessing.get_context("forkserver")
# The first optimiser imports torch._dynamo, which takes seconds.
_FORK.set_forkserver_preload(
    ["components.train.worker", "components.train.reporting.destination", "components.ingest.ingest", "torch._dynamo"]
)
NOWHERE = "http://127.0.0.1:9"
Prelude = Callable[[int], None]
"""Called in a rank with its number before it begins; it must be importable."""


def _be_rank(environment: Mapping[str, str], spec: str, prelude: Prelude | None, log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    sys.argv = ["worker", str(Path(environment["CELEBDIT_WORK_DIR"], spec))]  # a relative one is of each machine
    if prelude is not None:
        prelude(int(environment["RANK"]))
    from components.runtime.rank import worker_main
    from components.train.worker import body

    worker_main("train", body)


@dataclass
class Ranks:
    """The living ranks of one attempt."""

    processes: list[Any]
    folder: Path

    def signal(self, number: int, rank: int | None = None) -> None:
        for index, process in enumerate(self.processes):
            if rank in (None, index):
                assert process.is_alive(), f"rank {index} ended before the signal: {process.exitcode}"
                os.kill(process.pid, number)

    def wait(self, timeout_s: float = 60.0) -> list[int]:
        """Return the exit codes; a rank that has not ended by then fails the test."""
        deadline_s = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(deadline_s - time.monotonic(), 0))
        assert all(process.exitcode is not None for process in self.processes), "a rank hangs"
        return [process.exitcode for process in self.processes]

    def reason(self) -> Any:
        return first_failure(self.folder / FAILURES)


@dataclass
class Training:
    """One run on one machine: its data in object storage, its work directory, and the metrics recorded so far."""

    folder: Path
    endpoint: str
    root: StoreUri
    recipe: Recipe
    dataset: DatasetManifest
    resources: ResourcesConfig = field(default_factory=lambda: ResourcesConfig(device="cpu", rank_timeout_s=20.0))
    environment: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    features: FeaturesConfig | None = None

    def __post_init__(self) -> None:
        """Copy the dataset into this run's store from the store that it was ingested into, which holds this one."""
        store, origin = connect(self.endpoint, deadline_s=10.0), self.root
        while not (objects := store.list(StoreLayout(origin).locate(self.dataset.uri))):
            assert origin.key, f"{self.dataset.uri} is in no store around {self.root}"
            origin = StoreUri(origin.bucket, origin.key.rpartition("/")[0])
        for item in objects if origin != self.root else ():
            store.copy(item.uri, self.root.join(item.uri.relative_to(origin)))

    @property
    def key(self) -> str:
        return run_key(self.recipe.identity(self.dataset.digest))

    @property
    def layout(self) -> RunLayout:
        return StoreLayout(self.root).run(self.key)

    @property
    def work(self) -> Path:
        return self.folder / "work" / "runs" / self.key

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(connect(self.endpoint, deadline_s=10.0), self.layout.checkpoints)

    def spec(self) -> TrainSpec:
        self.attempts += 1
        return TrainSpec(
            run_key=self.key,
            attempt=f"a{self.attempts:03d}",
            dataset=self.dataset,
            resources=self.resources,
            features=self.features,
            **dict(self.recipe),
        )

    def start(self, size: int = 2, *, prelude: Prelude | None = None) -> Ranks:
        """Start the ranks of the next attempt."""
        self.work.mkdir(parents=True, exist_ok=True)
        path = self.work / "spec.json"
        self.spec().dump(path)
        shutil.rmtree(self.work / FAILURES, ignore_errors=True)
        return Ranks(start_ranks(str(path), self.machine_environment(), size=size, prelude=prelude, log=self.folder / "log.txt"), self.work)

    def machine_environment(self) -> dict[str, str]:
        return {
            "CELEBDIT_STORE": str(self.root),
            "CELEBDIT_RUN_ID": "run-1",
            "CELEBDIT_WORK_DIR": str(self.folder / "work"),
            "CELEBDIT_EXPERIMENT": "tests",  # as in `step_context`
            "CELEBDIT_EVENTS": str(self.folder / "events.jsonl"),
            "CELEBDIT_STORAGE_DEADLINE_S": "10",
            "MLFLOW_TRACKING_URI": NOWHERE,
            "AWS_ENDPOINT_URL": self.endpoint,
            **self.environment,
        }

    def recorded_values(self, key: str = "train/loss") -> dict[int, set[str]]:
        """Return what the journal has of metric `key`: every value recorded per step, exactly."""
        return recorded_in(self.work, key)

    def lines(self) -> int:
        """Return how many steps were recorded, those recorded twice counted twice."""
        path = self.work / "journal" / JOURNAL_FILE
        return path.read_text().count('"train/loss"') if path.exists() else 0

    def advance(self, steps: int, ranks: Ranks, timeout_s: float = 60.0) -> None:
        """Wait until the attempt of `ranks` has recorded `steps` more steps."""
        goal = self.lines() + steps
        wait_until(
            lambda: self.lines() >= goal,
            timeout_s=timeout_s,
            every_s=0.002,
            alive=lambda: all(process.is_alive() for process in ranks.processes),
            reason=lambda: f"{goal - self.lines()} of {steps} steps are missing: {ranks.reason()}",
        )

    def final_digest(self) -> str:
        (newest, *_) = self.checkpoints.list_committed()
        assert newest.step == self.recipe.training.total_steps
        return self.checkpoints.digest(newest.uri)


def recorded_in(work: Path, key: str = "train/loss") -> dict[int, set[str]]:
    """Return every value of metric `key` that the journal below `work`, a run's folder, has, per step and exactly."""
    path, values_by_step = work / "journal" / JOURNAL_FILE, dict[int, set[str]]()
    if path.exists():
        for line in path.read_text().splitlines():
            entry = json.loads(line) if line.endswith("}") else {}
            if entry.get("metric") == key:
                values_by_step.setdefault(entry["step"], set()).add(float(entry["value"]).hex())
    return values_by_step


def start_ranks(
    spec: str,
    environment: Mapping[str, str],
    *,
    size: int,
    log: Path,
    prelude: Prelude | None = None,
    nodes: int = 1,
    work_dirs: list[str] | None = None,
) -> list[Any]:
    """Start `size` ranks, spread evenly over `nodes` machines."""
    port, per_node, processes = str(free_port()), size // nodes, []
    for rank in range(size):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % per_node),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(per_node),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        if work_dirs is not None:
            place["CELEBDIT_WORK_DIR"] = work_dirs[rank // per_node]
        process = _FORK.Process(target=_be_rank, args=({**os.environ, **environment, **place}, spec, prelude, str(log)), daemon=True)
        process.start()
        processes.append(process)
    return processes


@contextmanager
def ended(ranks: Ranks) -> Iterator[Ranks]:
    """Leave no rank behind, whatever the test found."""
    try:
        yield ranks
    finally:
        for process in ranks.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()


def small_dataset(folder: Path, endpoint: str, root: StoreUri, *, count: int = 24) -> DatasetManifest:
    """Ingest a few drawn faces of 16 px."""
    folder.mkdir(parents=True, exist_ok=True)
    context = step_context("ingest", folder, str(root), endpoint=endpoint)
    return ingest(DataConfig(name="faces", source=f"synthetic://?count={count}&seed=0&size=64", image_px=16), context, workers=1)
