"""MLflow and object storage that fail under a training: training continues, nothing is lost, nothing is sent twice."""

import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celebdit_testing.faults import Fault, fault_proxy
from celebdit_testing.ranks import NOWHERE, Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.servers import MlflowServer, mlflow_server, rclone_server, wait_for_port
from celebdit_testing.steps import step_context
from celebdit_testing.waiting import wait_until
from mlflow import MlflowClient

from components.errors import Preempted, TemporaryFailure
from components.runtime.context import StepContext
from components.storage import StoreUri, connect
from components.stores.layout import StoreLayout
from components.system.ports import free_port
from components.train.reporting.reporter import MlflowRunReporter
from components.train.reporting.sync import sync
from components.train.spec import store_spec
from pipeline.services import Services

pytestmark = [pytest.mark.fault, pytest.mark.slow]
STEPS = 60


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def new_training(tmp_path: Path, endpoint: str, **training: object) -> Training:
    root = StoreUri("bucket", tmp_path.parent.name) / tmp_path.name
    # A seed of its own makes a run of its own in MLflow.
    values = {
        "seed": abs(hash(tmp_path.name)) % 2**31,
        "total_steps": STEPS,
        "log_every_steps": 1,
        "sample_every_steps": 20,
        "checkpoint_keep_every_steps": 10,
        **training,
    }
    return Training(tmp_path, endpoint, root, tiny_recipe(**values), small_dataset(tmp_path / "data", endpoint, root))


class Watched:
    """A training with a launcher's description beside it, as the step has them."""

    def __init__(self, training: Training, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self.training = training
        training.environment = {"MLFLOW_TRACKING_URI": mlflow_uri}
        self.context = self.reaching(mlflow_uri)
        spec = training.spec()
        store_spec(spec, connect(training.endpoint), StoreLayout(training.root))
        self.description = MlflowRunReporter(self.context, spec)
        self.description.begin()

    def reaching(self, mlflow_uri: str) -> StepContext:
        return step_context("train", self.training.folder, str(self.training.root), endpoint=self.training.endpoint, mlflow_uri=mlflow_uri)

    def finish(self, seconds: float = 120) -> None:
        with ended(self.training.start(1)) as ranks:
            assert ranks.wait(seconds) == [0], ranks.reason()
        self.description.end(None)

    def events(self) -> str:
        return (self.training.folder / "events.jsonl").read_text()


def assert_complete(training: Training, mlflow_url: str) -> None:
    """Assert that MLflow holds what the journal holds, each (key, step) once."""
    client, settings = MlflowClient(mlflow_url), training.recipe.training
    every = settings.log_every_steps
    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    (run,) = client.search_runs(
        [experiment.experiment_id], f"tags.`celebdit.run_key` = '{training.key}' and tags.`celebdit.step` = 'train'"
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["training.seed"] == str(settings.seed)
    for key in ("train/loss", "train/lr", "perf/images_per_s", "system/node_0/cpu_percent", "cost/cpu_rank_hours"):
        history = client.get_metric_history(run.info.run_id, key)
        recorded = {step: {float.fromhex(value) for value in values} for step, values in training.recorded_values(key).items()}
        assert Counter(point.step for point in history) == Counter(range(every, settings.total_steps + 1, every)), key
        assert all(point.value in recorded[point.step] for point in history)
    image_paths = [item.path for item in client.list_artifacts(run.info.run_id, "images") if item.path.endswith(".png")]
    assert sum("samples~ema_grid" in path for path in image_paths) == settings.total_steps // settings.sample_every_steps


def test_sync_uploads_everything_that_an_unavailable_mlflow_missed_even_from_another_machine(
    tmp_path: Path, rclone_endpoint: str, embedded: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, mlflow_url = new_training(tmp_path, rclone_endpoint, log_every_steps=5), embedded.wait().mlflow_url
    watched = Watched(training, NOWHERE, monkeypatch)
    watched.finish()
    assert "run `celebdit sync" in watched.events()
    elsewhere = step_context("sync", tmp_path / "elsewhere", str(training.root), endpoint=rclone_endpoint, mlflow_uri=mlflow_url)
    assert sync(training.key, elsewhere) > STEPS
    assert_complete(training, mlflow_url)
    here = watched.reaching(mlflow_url)
    sync(training.key, here)
    assert sync(training.key, here) == 0
    assert_complete(training, mlflow_url)


def test_a_stop_does_not_wait_for_an_mlflow_that_does_not_answer(
    tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # as a step sets it for itself, only longer
    with socket.create_server(("127.0.0.1", 0)) as silent:
        training = new_training(tmp_path, rclone_endpoint, total_steps=10_000)
        training.environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with ended(training.start(1)) as ranks:
            silent.settimeout(60)
            connection, _ = silent.accept()
            training.advance(5, ranks)
            ranks.signal(signal.SIGTERM)
            assert ranks.wait(20) == [Preempted.exit_code]
        connection.close()
    stopped_at = max(training.recorded_values())
    assert training.checkpoints.list_committed()[0].step == stopped_at
    journal_uris = [item.uri for item in connect(rclone_endpoint).list(training.layout.journal) if item.uri.name.endswith(".jsonl")]
    assert journal_uris, "what MLflow missed is not in object storage"
    assert f'"step": {stopped_at},' in connect(rclone_endpoint).get_bytes(max(journal_uris, key=lambda uri: uri.key)).decode()


def test_mlflow_that_is_killed_in_the_middle_and_comes_back_misses_nothing(
    tmp_path: Path, rclone_endpoint: str, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new_training(tmp_path, rclone_endpoint, total_steps=600, log_every_steps=5)
    watched = Watched(training, mlflow.url, monkeypatch)
    with ended(training.start(1)) as ranks:
        wait_until(
            lambda: (run := watched.context.tracking.training_run(training.key)) is not None and bool(run.data.metrics),
            timeout_s=60,
            every_s=0.25,
        )
        assert ranks.processes[0].is_alive(), "training ended before MLflow was killed"
        mlflow.kill()
        training.advance(5, ranks)
        assert ranks.wait(120) == [0], ranks.reason()
    mlflow.start()
    watched.description.end(None)
    sync(training.key, watched.context)
    assert_complete(training, mlflow.url)


@pytest.mark.parametrize("kind", ["500", "slow", "lost_answer"])
def test_a_faulty_mlflow_neither_stops_training_nor_receives_metrics_twice(
    tmp_path: Path, rclone_endpoint: str, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    faults = [Fault(kind, method, times=10**6, delay_s=2.0) for method in ("GET", "POST")]  # type: ignore[arg-type]
    with fault_proxy(mlflow.url, signed=False) as proxy:
        training = new_training(tmp_path, rclone_endpoint, total_steps=300, log_every_steps=5)
        watched = Watched(training, proxy.endpoint, monkeypatch)
        with ended(training.start(1)) as ranks:
            training.advance(2, ranks)
            proxy.faults[:] = faults
            wait_until(lambda: sum(fault.fired for fault in faults) > 0, timeout_s=60, every_s=0.25)
            training.advance(8, ranks, timeout_s=30)
            proxy.faults.clear()
            assert ranks.wait(120) == [0], ranks.reason()
        watched.description.end(None)
        sync(training.key, watched.context)
    assert_complete(training, mlflow.url)


def test_a_temporary_outage_of_storage_costs_nothing(tmp_path: Path, s3_credentials: None) -> None:
    port = free_port()
    with ExitStack() as first:
        endpoint = first.enter_context(rclone_server(tmp_path / "s3", port=port))
        training = new_training(tmp_path, endpoint, total_steps=140)
        with ended(training.start(1)) as ranks:
            training.advance(20, ranks)
            before = training.checkpoints.list_committed()[0].step if training.checkpoints.list_committed() else 0
            first.close()  # the server is gone
            training.advance(40, ranks)
            with rclone_server(tmp_path / "s3", port=port):
                wait_for_port(port)
                assert ranks.wait(120) == [0], ranks.reason()
                training.final_digest()
                assert training.checkpoints.list_committed()[0].step > before


def test_a_lasting_outage_of_storage_exits_75_and_the_next_attempt_uploads_the_local_files(tmp_path: Path, s3_credentials: None) -> None:
    port = free_port()
    with ExitStack() as first:
        endpoint = first.enter_context(rclone_server(tmp_path / "s3", port=port))
        training = new_training(tmp_path, endpoint)
        training.environment = {"CELEBDIT_STORAGE_DEADLINE_S": "1"}
        with ended(training.start(1)) as ranks:
            training.advance(30, ranks)
            first.close()
            assert ranks.wait(120) == [TemporaryFailure.exit_code]
            assert "failed" in ranks.reason().message
    lines_before = training.lines()
    with rclone_server(tmp_path / "s3", port=port):
        with ended(training.start(1)) as ranks:
            assert ranks.wait(120) == [0], ranks.reason()
        training.final_digest()
    assert "was only on local disk and is now uploaded" in (training.folder / "events.jsonl").read_text()
    assert training.lines() == lines_before, "steps were done again although a checkpoint of the last one was on disk"


def test_a_rank_that_waits_for_storage_while_it_starts_is_not_given_up(tmp_path: Path, rclone_endpoint: str) -> None:
    """Rank 0 alone looks for a checkpoint; the limit within which ranks answer each other in training is shorter than that takes."""
    training = new_training(tmp_path, rclone_endpoint, batch_images=8)
    training.resources = training.resources.model_copy(update={"rank_timeout_s": 2.0})
    with fault_proxy(rclone_endpoint) as proxy:
        training.environment = {"AWS_ENDPOINT_URL": proxy.endpoint}
        slow = Fault("slow", "GET", path="checkpoints", delay_s=6.0)
        with proxy.injecting(slow), ended(training.start(2)) as ranks:
            assert ranks.wait(60) == [0, 0], ranks.reason()
    assert training.lines() == STEPS
