"""What a killed command left is found and put in order by the next one: processes, a queued checkpoint, metrics, runs in MLflow."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from celebdit_testing.ranks import NOWHERE, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import step_context

from components.environment import LIFELINE
from components.manifests import DatasetManifest
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.stores.checkpoints import CheckpointStore
from components.system.work_folders import WorkFolder
from components.tracking.journal import Journal
from components.train.reporting.reporter import describe_run
from components.train.spec import TrainSpec, run_key, store_spec
from model.checkpoint import CheckpointState, publish
from pipeline.local_runs import read_run
from pipeline.open_runs import open_run, recover_killed_runs
from pipeline.services import Endpoints

pytestmark = [pytest.mark.fault, pytest.mark.slow]

_KILLED = """
import os, sys
from pathlib import Path
from pipeline.open_runs import OpenRun
from components.system.work_folders import WorkFolder
OpenRun(Path(sys.argv[1]), servers="embedded")
os.kill(os.getpid(), 9)
"""


@dataclass
class Killed:
    """A run whose command was killed in the middle of a training, with MLflow and object storage as it left them."""

    home: Path
    context: StepContext
    spec: TrainSpec

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "killed-1"

    @property
    def mark(self) -> Path:
        return self.folder / "open.json"

    def statuses(self) -> dict[str, str]:
        runs = self.context.tracking.search_runs({"celebdit.pipeline_run": self.context.settings.pipeline_run_id})
        return {run.data.tags.get("celebdit.step", "pipeline"): run.info.status for run in runs}

    def next_context(self, **changes: object) -> StepContext:
        settings = replace(self.context.settings, run_id="next-1", **changes)  # type: ignore[arg-type]
        return StepContext(settings=settings, events=self.context.events)


@pytest.fixture(scope="module")
def dataset(rclone_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> DatasetManifest:
    """What the trainings read, if they did: its manifest alone is looked at."""
    return small_dataset(tmp_path_factory.mktemp("data"), rclone_endpoint, StoreUri("bucket", "killed"))


@pytest.fixture
def killed(tmp_path: Path, endpoints: Endpoints, dataset: DatasetManifest) -> Killed:
    home, root = tmp_path / "home", StoreUri("celebdit", "killed") / tmp_path.name
    context = step_context("train", home, str(root), endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id=tmp_path.name)
    context = StepContext(settings=replace(context.settings, run_id="killed-1", experiment=tmp_path.name), events=context.events)
    recipe = tiny_recipe(total_steps=50)
    key = run_key(recipe.identity(dataset.digest))
    spec = TrainSpec(run_key=key, attempt="a001", dataset=dataset, resources=ResourcesConfig(device="cpu"), **dict(recipe))
    store_spec(spec, context.store, context.layout)
    context.tracking.set_status(context.tracking.pipeline_run().info.run_id, "RUNNING")
    describe_run(context.tracking, spec)
    context.tracking.set_status(context.tracking.step_run("register").info.run_id, "RUNNING")
    work = context.scratch(WorkFolder.RUNS, key)
    Journal(work / "journal").add_metrics(20, {"train/loss": 0.5})
    state = CheckpointState(step=20, tensors={"weights": {"x": torch.ones(3)}}, facts={"identity": spec.identity(dataset.digest)})
    publish(state, work / "checkpoints")
    folder = home / "runs" / "killed-1"
    folder.mkdir(parents=True)
    began = {"step": "train", "kind": "note", "at_s": 1.0, "facts": {"text": "begins", "run_key": key}}
    (folder / "events.jsonl").write_text('{"step": "ing\n' + json.dumps(began) + "\n" + '{"step": "tr')
    dead = subprocess.run([sys.executable, "-c", _KILLED, str(folder)], check=False)
    assert dead.returncode == -9
    assert json.loads((folder / "open.json").read_text())["pid"] > 0
    return Killed(home, context, spec)


def state_of(folder: Path, run_id: str) -> str:
    """What `celebdit runs` says of the run in `folder`, under a name as runs have it."""
    run = read_run(folder.rename(folder.with_name(run_id)))
    assert run is not None
    return run.state


def test_everything_a_killed_command_left_is_put_in_order(killed: Killed) -> None:
    assert killed.statuses() == {"pipeline": "RUNNING", "train": "RUNNING", "register": "RUNNING"}
    checkpoints = CheckpointStore(killed.context.store, killed.context.layout.run(killed.spec.run_key).checkpoints)
    assert checkpoints.list_committed() == []
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, LIFELINE: str(killed.folder / "lifeline")})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, LIFELINE: str(killed.home / "runs" / "other" / "lifeline")})
    messages: list[str] = []
    try:
        recover_killed_runs(killed.home, killed.next_context(), messages.append, servers="embedded")
        assert left.wait(5) == -9
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
    assert killed.statuses() == {"pipeline": "KILLED", "train": "KILLED", "register": "KILLED"}
    assert [entry.step for entry in checkpoints.list_committed()] == [20]
    trained = killed.context.tracking.training_run(killed.spec.run_key)
    assert trained is not None
    assert killed.context.tracking.logged_steps(trained.info.run_id, "train/loss") == {20}
    assert messages == ["run killed-1 was killed before it could close, 1 process of it ended; its runs in MLflow are closed now"]
    assert not killed.mark.exists()
    recover_killed_runs(killed.home, killed.next_context(), messages.append, servers="embedded")
    assert len(messages) == 1, "once"
    assert state_of(killed.folder, "smoke-20261101-100000-aaaa") == "killed"


def test_a_run_whose_command_lives_is_left_alone(killed: Killed) -> None:
    with open_run(killed.folder, servers="embedded"):
        recover_killed_runs(killed.home, killed.next_context(), pytest.fail, servers="embedded")
        assert killed.mark.exists()
    assert killed.statuses()["pipeline"] == "RUNNING"


def test_a_run_that_had_closed_keeps_its_status(killed: Killed) -> None:
    tracking = killed.context.tracking
    tracking.set_status(tracking.pipeline_run().info.run_id, "FINISHED")
    recover_killed_runs(killed.home, killed.next_context(), lambda text: None, servers="embedded")
    assert killed.statuses() == {"pipeline": "FINISHED", "train": "KILLED", "register": "KILLED"}
    assert not killed.mark.exists()


def test_without_mlflow_a_killed_run_is_kept_for_later_and_fails_no_command(killed: Killed) -> None:
    messages: list[str] = []
    recover_killed_runs(killed.home, killed.next_context(mlflow_uri=NOWHERE), messages.append, servers="embedded")
    (line,) = messages
    assert "run killed-1 was killed, and cannot be recovered yet: MLflow at http://127.0.0.1:9" in line
    assert killed.mark.exists()


def test_an_empty_mark_of_a_full_disk_is_recovered_too(killed: Killed) -> None:
    killed.mark.write_text("")
    recover_killed_runs(killed.home, killed.next_context(), lambda text: None, servers="embedded")
    assert not killed.mark.exists()
    assert set(killed.statuses().values()) == {"KILLED"}


def test_a_run_that_was_killed_before_it_reached_mlflow_is_not_created_there(killed: Killed) -> None:
    folder = killed.home / "runs" / "early-1"
    subprocess.run([sys.executable, "-c", _KILLED, str(folder)], check=False)
    recover_killed_runs(killed.home, killed.next_context(), lambda text: None, servers="embedded")
    assert not (folder / "open.json").exists()
    assert killed.context.tracking.search_runs({"celebdit.pipeline_run": "early-1"}) == []


def test_of_a_run_with_other_servers_only_the_processes_are_ended(killed: Killed) -> None:
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, LIFELINE: str(killed.folder / "lifeline")})
    recover_killed_runs(killed.home, killed.next_context(), pytest.fail, servers="s3://elsewhere")
    assert left.wait(5) == -9
    assert killed.mark.exists()
    assert killed.statuses()["pipeline"] == "RUNNING"
