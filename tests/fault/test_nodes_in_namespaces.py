"""Nodes of a TrainJob as pods in network namespaces: own address, hostname, /etc/hosts, process ids and disk; servers over a bridge.

The pods' hostnames resolve nowhere, and their environment is what the TrainJob and Kubeflow Trainer set.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.pods import BRIDGE, Network, address, cannot_make, init_of, network
from celebdit_testing.ranks import NOWHERE, Training, ended, recorded_in, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY, mlflow_server, rclone_server
from celebdit_testing.steps import step_context
from celebdit_testing.trainjobs import MANIFESTS, in_pod
from mlflow import MlflowClient

from components import deployment as names
from components.errors import Preempted, TemporaryFailure
from components.resources import ResourcesConfig
from components.storage import StoreUri
from components.train.trainjob.job import train_on_nodes

WHY_NOT = {user: cannot_make(user=user) for user in (True, False)}
STEPS = 200
PORT = 29500
pytestmark = [pytest.mark.fault, pytest.mark.skipif(bool(WHY_NOT[True]), reason=WHY_NOT[True] or "-")]


class Cluster:
    """A cluster of two pods, and the trainings that run on it."""

    def __init__(self, folder: Path, kube: FakeKube, pods: Network, endpoint: str) -> None:
        self.folder, self.kube, self.pods, self._endpoint = folder, kube, pods, endpoint
        self._executor = ThreadPoolExecutor(1)

    def configure(self, training: Training, s3_url: str, mlflow_url: str = NOWHERE) -> None:
        """Set where pods find storage and MLflow, and with which credentials."""
        self.kube.put("secrets", names.S3_SECRET, data={"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY})
        settings = {"CELEBDIT_STORE": str(training.root), "CELEBDIT_EXPERIMENT": "tests", "AWS_ENDPOINT_URL": s3_url}
        self.kube.put("configmaps", names.CONFIG_MAP, data={**settings, "MLFLOW_TRACKING_URI": mlflow_url})

    def training(self, name: str, **resources: float) -> Training:
        """Return a training on two nodes; its data is in object storage."""
        root = StoreUri("bucket", f"pods-{self.folder.name}")
        dataset = small_dataset(self.folder / f"data-{name}", self._endpoint, root)
        recipe = tiny_recipe(total_steps=STEPS, batch_images=12, log_every_steps=10, checkpoint_keep_every_steps=15)
        asked = ResourcesConfig(device="cpu", nodes=2, **resources)
        return Training(self.folder / name, self._endpoint, root / name, recipe, dataset, asked)

    def start(self, training: Training) -> "Future[None]":
        """Begin an attempt of the train step."""
        context = in_pod(step_context("train", self.folder, str(training.root), endpoint=self._endpoint))
        return self._executor.submit(train_on_nodes, training.spec(), context, poll_s=0.2)

    def describe(self, training: Training, mlflow_url: str) -> None:
        """Open the run of `training` in MLflow, as the step does, whose pod reaches the server."""
        training.spec().dump(self.folder / "described.json")
        context = f"step_context('train', Path({str(self.folder)!r}), {str(training.root)!r}, endpoint=None, mlflow_uri={mlflow_url!r})"
        script = (
            "from pathlib import Path; from celebdit_testing.steps import step_context; from components.train.spec import TrainSpec; "
            "from components.train.reporting.reporter import describe_run; "
            f"describe_run({context}.tracking, TrainSpec.load(Path({str(self.folder / 'described.json')!r})))"
        )
        command = [*self.pods.enter(), sys.executable, "-c", script]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "support")})

    def wait_for_checkpoints(self, training: Training, attempt: "Future[None]", count: int) -> None:
        while len(training.checkpoints.list_committed()) < count:
            assert not attempt.done(), attempt.exception()
            time.sleep(0.1)

    def recorded_values(self, training: Training) -> dict[int, set[str]]:
        """Return what the first node of each attempt recorded of the loss."""
        values: dict[int, set[str]] = {}
        for disk in self.folder.glob("node-0-*"):
            for step, recorded in recorded_in(disk / "runs" / training.key).items():
                values.setdefault(step, set()).update(recorded)
        return values


@pytest.fixture
def cluster(tmp_path: Path, rclone_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with network(tmp_path / "network", user=True, pods=2) as pods, kube_server(tmp_path) as kube:
        kube.load_rights(MANIFESTS / "pipeline" / "rbac.yaml")
        kube.put("pods", "train-pod")
        kube.run_nodes, kube.pods = tmp_path, pods
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "pipeline-runner.kubeconfig"))
        yield Cluster(tmp_path, kube, pods, rclone_endpoint)


@pytest.fixture
def s3_url(cluster: Cluster, rclone_folder: Path) -> Iterator[str]:
    """The same storage as that of this machine, at the bridge."""
    with rclone_server(rclone_folder, pods=cluster.pods) as url:
        yield url


def undisturbed(training: Training) -> tuple[str, dict[int, set[str]]]:
    """Train the same with two processes of this machine, and return the digest and what was recorded of the loss."""
    alone = Training(training.folder.parent / "alone", training.endpoint, training.root / "alone", training.recipe, training.dataset)
    with ended(alone.start(2)) as ranks:
        assert ranks.wait(120) == [0, 0], ranks.reason()
    return alone.final_digest(), alone.recorded_values()


@pytest.mark.slow
def test_two_nodes_equal_one_and_listen_to_each_other_alone(cluster: Cluster, s3_url: str) -> None:
    training = cluster.training("nodes")
    with mlflow_server(cluster.folder / "mlflow", pods=cluster.pods) as mlflow:
        cluster.configure(training, s3_url, mlflow.url)
        cluster.describe(training, mlflow.url)
        attempt = cluster.start(training)
        cluster.wait_for_checkpoints(training, attempt, 1)
        listening = {index: cluster.pods.listening(index) for index in (0, 1)}
        attempt.result(180)
        client = MlflowClient(f"sqlite:///{cluster.folder / 'mlflow' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        (run,) = client.search_runs(
            [experiment.experiment_id], f"tags.`celebdit.run_key` = '{training.key}' and tags.`celebdit.step` = 'train'"
        )
    print("listening:", listening)
    assert (training.final_digest(), cluster.recorded_values(training)) == undisturbed(training)
    assert run.data.metrics["train/loss"] > 0, "the first node found MLflow"
    assert {place for place in listening[0] if place[0] != address(0)} == {("::", PORT)}, "the store alone listens on every interface"
    assert listening[1]
    assert {host for host, _ in listening[1]} == {address(1)}, "gloo listens where node 0 is reached"


@pytest.mark.slow
def test_a_killed_node_ends_the_job_in_seconds_and_the_next_attempt_continues_on_empty_disks(cluster: Cluster, s3_url: str) -> None:
    training = cluster.training("killed")
    cluster.configure(training, s3_url)
    attempt = cluster.start(training)
    cluster.wait_for_checkpoints(training, attempt, 2)
    init_of(cluster.kube.children[1]).kill()
    killed_s = time.monotonic()
    error = attempt.exception(60)
    assert time.monotonic() - killed_s < 15
    assert isinstance(error, TemporaryFailure)
    assert error.message == "node 1 was killed by SIGKILL (status 137)"
    step = training.checkpoints.list_committed()[0].step
    assert 0 < step < STEPS, "it was killed in the middle"
    (words,) = [json.loads(path.read_text()) for path in cluster.folder.glob("last-words-0-*")]
    assert words["message"] == f"rank 0: another rank is gone or did not answer for 600 s ({address(1)})", "node 0 names who is gone"

    cluster.start(training).result(180)
    assert f"continuing from step {step}" in "".join(path.read_text() for path in cluster.folder.glob("node-0.log"))
    digest, recorded = undisturbed(training)
    assert training.final_digest() == digest
    assert cluster.recorded_values(training) == recorded, "one value per metric point, that of the training without a break"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "reason"),
    [
        (1, "node 0: no rank of components.train.worker was started: 1 of 2 nodes came within 5 s"),
        (0, f"node 1: no rank of components.train.worker was started: node 0 accepted no connection at node-0:{PORT} within 5 s"),
    ],
)
def test_a_node_that_never_comes_is_counted_within_the_limit(cluster: Cluster, s3_url: str, absent: int, reason: str) -> None:
    training = cluster.training("absent", node_timeout_s=5.0)
    cluster.configure(training, s3_url)
    cluster.kube.absent_nodes = frozenset({absent})
    began_s = time.monotonic()
    error = cluster.start(training).exception(60)
    assert isinstance(error, TemporaryFailure)
    assert error.message.startswith(reason)
    assert f"node {absent} did not start: 0/5 nodes are available" in str(error.hint)
    assert "resources.node_timeout_s" in str(error.hint)
    assert "memory" not in error.message + str(error.hint)
    assert time.monotonic() - began_s < 40


def handles_sigterm(process: psutil.Process) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("user", [pytest.param(True, id="user"), pytest.param(False, id="root")])
@pytest.mark.parametrize("delay_s", [0.0, 3.0], ids=["at-once", "while-it-waits-for-storage"])
def test_a_node_that_is_process_1_ends_on_sigterm_before_it_has_ranks(tmp_path: Path, user: bool, delay_s: float) -> None:
    if WHY_NOT[user]:
        pytest.skip(WHY_NOT[user])
    words = tmp_path / "words"
    environment = {
        "PATH": os.environ["PATH"],
        "CELEBDIT_STORE": "s3://bucket/x",
        "CELEBDIT_RUN_ID": "run-1",
        "CELEBDIT_WORK_DIR": str(tmp_path / "work"),
        "CELEBDIT_LAST_WORDS": str(words),
        "MLFLOW_TRACKING_URI": NOWHERE,
        "AWS_ENDPOINT_URL": f"http://{BRIDGE}:9",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    with network(tmp_path / "network", user=user, pods=1) as pods:
        command = [*pods.pod(0), sys.executable, "-m", "components.train.trainjob.node", "s3://bucket/x/spec.json", "90"]
        pod = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        node = init_of(pod)
        deadline_s = time.monotonic() + 20
        while not handles_sigterm(node):
            assert time.monotonic() < deadline_s, "process 1 ignores what it does not handle"
            time.sleep(0.001)
        time.sleep(delay_s)
        began_s = time.monotonic()
        node.send_signal(signal.SIGTERM)
        _, stderr = pod.communicate(timeout=20)
    assert pod.returncode == Preempted.exit_code, stderr
    assert time.monotonic() - began_s < 20
    assert "asked to stop before its ranks were started" in stderr
    facts = json.loads(words.read_text())
    assert (facts["kind"], facts["exit_code"]) == ("Preempted", Preempted.exit_code)
