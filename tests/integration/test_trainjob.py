"""Training on several nodes, against a Kubernetes API server that grants what docker/kubernetes grants and no more."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.recipes import dataset_manifest, tiny_recipe
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY
from celebdit_testing.steps import notes, step_context

from components import cluster as names
from components.context import StepContext
from components.errors import BadInput, CelebditError, DataRefused, Preempted, TemporaryFailure
from components.ingest.config import DataConfig
from components.ingest.ingest import run as ingest
from components.kube import Cluster
from components.resources import ResourcesConfig, Toleration
from components.storage import ObjectStore, StoreUri
from components.storage import connect as connect_store
from components.train.lease import Lease, LeaseWatch
from components.train.spec import TrainSpec
from components.train.train import run as train
from components.train.trainjob import first_failure, job_name, train_on_nodes, trainjob, waiting_reason
from pipeline.services import Endpoints

MANIFESTS = Path(__file__).parents[2] / "docker" / "kubernetes"
KEY = "0123456789abcdef"
JOB = job_name(KEY)
IMAGE = "registry.example/celebdit-gpu@sha256:" + "b" * 64
ENVIRON = {
    names.IMAGE: IMAGE,
    names.POD: "train-pod",
    "CELEBDIT_RUN_ID": "run-1",
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-0123456789",
}


def spec_of(attempt: str = "a1", **resources: Any) -> TrainSpec:
    recipe = tiny_recipe()
    return TrainSpec(
        run_key=KEY,
        attempt=attempt,
        dataset=dataset_manifest(),
        network=recipe.network,
        diffusion=recipe.diffusion,
        optimizer=recipe.optimizer,
        training=recipe.training,
        sampling=recipe.sampling,
        resources=ResourcesConfig(**{"nodes": 2, "device": "cuda", "processes": 8, **resources}),
    )


@pytest.fixture
def kube(tmp_path: Path) -> Iterator[FakeKube]:
    with kube_server(tmp_path) as fake:
        fake.load_rights(MANIFESTS / "pipeline" / "rbac.yaml")
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "celebdit-x", "uid": "u-1", "controller": True}
        fake.put("pods", "train-pod", metadata={"ownerReferences": [owner]})
        yield fake


@pytest.fixture
def context(tmp_path: Path, moto_endpoint: str) -> StepContext:
    return step_context("train", tmp_path, f"s3://bucket/{tmp_path.name}", endpoint=moto_endpoint)


def connect(tmp_path: Path, account: str = "pipeline-runner", deadline_s: float = 5.0) -> Cluster:
    return Cluster.connect({"KUBECONFIG": str(tmp_path / f"{account}.kubeconfig")}, deadline_s=deadline_s)


class Step(threading.Thread):
    """The train step in a thread, so that a test can play the cluster beside it."""

    def __init__(self, tmp_path: Path, context: StepContext, spec: TrainSpec, account: str = "pipeline-runner") -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._call = lambda: train_on_nodes(spec, context, environ=ENVIRON, cluster=connect(tmp_path, account), poll_s=0.02)

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def outcome(self) -> BaseException | None:
        self.join(20)
        assert not self.is_alive(), "the step does not end"
        return self.error


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path, context: StepContext, kube: FakeKube) -> Callable[..., Step]:
    def started(spec: TrainSpec | None = None, account: str = "pipeline-runner") -> Step:
        step = Step(tmp_path, context, spec or spec_of(), account)
        step.start()
        return step

    return started


def test_a_training_on_two_nodes_is_a_trainjob_that_is_waited_for(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    spec = kube.objects["trainjobs", JOB]["spec"]
    assert spec["runtimeRef"]["name"] == names.TRAINING_RUNTIME
    assert (spec["trainer"]["image"], spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (IMAGE, 2, 8)
    assert spec["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    time.sleep(0.1)
    assert step.is_alive()
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert ("trainjobs", JOB) in kube.objects


def test_placement_and_space_reach_the_pods(kube: FakeKube) -> None:
    asked = {"node_selector": {"pool": "h200"}, "tolerations": (Toleration(key="team", operator="Equal", value="faces"),), "shm": "32Gi"}
    job = trainjob(spec_of(**asked), "s3://b/spec.json", IMAGE, ENVIRON, owners=[])
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "h200"}
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["team", "nvidia.com/gpu"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}} in pod["volumes"]


def test_secrets_are_named_in_the_job_and_never_contained(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    env = {entry["name"]: entry for entry in kube.objects["trainjobs", JOB]["spec"]["trainer"]["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": names.S3_SECRET,
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }
    kube.condition(JOB, "Complete")
    step.outcome()
    for canary in (ACCESS_KEY, SECRET_KEY, ENVIRON["MLFLOW_TRACKING_PASSWORD"]):
        assert canary not in "".join(kube.bodies)


def test_the_job_belongs_to_the_runs_workflow(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Complete")
    step.outcome()
    (owner,) = kube.objects["trainjobs", JOB]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "celebdit-x", "uid": "u-1"}


@pytest.mark.parametrize("fault", [None, "lost", 500, 503, 429])
def test_a_retried_step_adopts_its_job_and_a_lost_answer_makes_no_second_one(
    kube: FakeKube, start: Callable[..., Step], context: StepContext, fault: int | str | None
) -> None:
    if fault is not None:
        kube.faults.append(("create", "trainjobs", fault))
    first = start(spec_of("a1"))
    until(lambda: ("trainjobs", JOB) in kube.objects)
    made = kube.objects["trainjobs", JOB]["metadata"]["uid"]
    second = start(spec_of("a2"))  # as when the first step's pod was deleted
    until(lambda: any("going on with it" in note for note in notes(context)))
    kube.condition(JOB, "Complete")
    assert (first.outcome(), second.outcome()) == (None, None)
    assert kube.objects["trainjobs", JOB]["metadata"]["uid"] == made


def test_a_job_that_failed_or_has_other_settings_is_replaced(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "DeadlineExceeded")
    assert isinstance(step.outcome(), TemporaryFailure)
    old = kube.objects["trainjobs", JOB]["metadata"]["uid"]
    for resources in ({}, {"nodes": 3}):
        step = start(spec_of(**resources))
        until(lambda old=old: kube.objects.get(("trainjobs", JOB), {"metadata": {"uid": old}})["metadata"]["uid"] != old)
        old = kube.objects["trainjobs", JOB]["metadata"]["uid"]
        if resources:
            assert kube.objects["trainjobs", JOB]["spec"]["trainer"]["numNodes"] == 3
            kube.condition(JOB, "Complete")
            assert step.outcome() is None
        else:
            kube.condition(JOB, "Failed", "x")
            step.outcome()
    assert kube.count("delete trainjobs") == 2


def terminated(exit_code: int, at: str, message: str = "", reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": exit_code, "finishedAt": f"2026-01-01T00:00:{at}Z", "message": message, "reason": reason}}
    return {"containerStatuses": [{"name": "node", "state": state}]}


def test_the_error_of_the_node_that_failed_first_comes_out_with_its_kind(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    noise = '{"exit_code": 70, "message": "DistBackendError: connection closed", "hint": null}'
    told = '{"exit_code": 3, "message": "rank 9: loss or gradient is not finite", "hint": "lower optimizer.lr_peak"}'
    kube.node_pod(JOB, 0, phase="Failed", **terminated(70, "01", noise))
    kube.node_pod(JOB, 1, phase="Failed", **terminated(3, "02", told))
    kube.condition(JOB, "Failed", "jobset failed")
    error = step.outcome()
    assert isinstance(error, DataRefused)
    assert error.message == "node 1: rank 9: loss or gradient is not finite"
    assert error.hint == "lower optimizer.lr_peak"


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (terminated(137, "01", reason="OOMKilled"), "node 1 ran out of memory", DataRefused),
        (terminated(1, "01", "Traceback\nKeyError: 'x'"), "node 1 ended with status 1: KeyError: 'x'", TemporaryFailure),
        ({"reason": "Evicted", "message": "The node was low on resource"}, "node 1 was evicted", TemporaryFailure),
        (terminated(139, "01"), "it left no reason", TemporaryFailure),
    ],
)
def test_what_kubernetes_saw_is_told_when_the_node_could_not(status: dict[str, Any], said: str, kind: type[CelebditError]) -> None:
    pod = {"metadata": {"labels": {"batch.kubernetes.io/job-completion-index": "1"}}, "status": {"phase": "Failed", **status}}
    error = first_failure([pod])
    assert isinstance(error, kind)
    assert said in error.message


def test_without_pods_the_jobs_own_condition_is_told(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "TrainingRuntime celebdit-torch not found")
    assert "celebdit-torch not found" in str(step.outcome())


def test_a_job_that_somebody_deletes_is_a_temporary_failure(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    del kube.objects["trainjobs", JOB]
    error = step.outcome()
    assert isinstance(error, TemporaryFailure)
    assert "deleted by somebody" in error.message


def test_node_0_is_heard_and_waiting_pods_are_explained(
    kube: FakeKube, start: Callable[..., Step], context: StepContext, capfd: pytest.CaptureFixture[str]
) -> None:
    kube.logs[f"{JOB}-node-0-0"] = b"[train] 10/100 loss 0.5\n[train] 20/100 loss 0.4\nlast line"
    kube.logs[f"{JOB}-node-0-1"] = b"the other node\n"
    scheduled = {"type": "PodScheduled", "status": "False", "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."}
    kube.node_pod(JOB, 0)
    kube.node_pod(JOB, 1, phase="Pending", conditions=[scheduled])
    step = start()
    until(lambda: any("Insufficient nvidia.com/gpu" in note for note in notes(context)))
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    heard = capfd.readouterr().err
    assert heard.count("20/100 loss 0.4") == 1
    assert "last line" in heard
    assert "the other node" not in heard


def test_a_pod_that_cannot_pull_its_image_is_explained() -> None:
    waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}
    assert waiting_reason({"status": {"phase": "Pending", **waiting}}) == "ImagePullBackOff: not found"


def test_an_api_server_that_is_away_for_a_while_is_waited_for(kube: FakeKube, start: Callable[..., Step]) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.faults += [("get", "trainjobs", 500), ("get", "trainjobs", "lost"), ("list", "pods", 503), ("get", "trainjobs", 429)]
    until(lambda: not kube.faults)
    assert step.is_alive()
    kube.condition(JOB, "Complete")
    assert step.outcome() is None


def test_a_step_that_is_cancelled_deletes_its_job(kube: FakeKube, tmp_path: Path, context: StepContext) -> None:
    def cancel() -> None:
        until(lambda: ("trainjobs", JOB) in kube.objects)
        os.kill(os.getpid(), signal.SIGTERM)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Preempted):
        train_on_nodes(spec_of(), context, environ=ENVIRON, cluster=connect(tmp_path), poll_s=0.02)
    canceller.join()
    assert ("trainjobs", JOB) not in kube.objects


def test_a_missing_right_is_named(kube: FakeKube, start: Callable[..., Step]) -> None:
    error = start(account="nobody").outcome()
    assert isinstance(error, BadInput)
    assert "does not allow to get pods in namespace kubeflow" in error.message
    kube.rules["pipeline-runner"] = [rule for rule in kube.rules["pipeline-runner"] if "trainjobs" not in rule["resources"]]
    error = start().outcome()
    assert isinstance(error, BadInput)
    assert "trainjobs.trainer.kubeflow.org" in error.message


def test_the_manifests_grant_only_what_the_step_uses(kube: FakeKube, start: Callable[..., Step]) -> None:
    """Take each verb away in turn: every one of them is needed."""
    granted = [(rule, verb) for rule in kube.rules["pipeline-runner"] for verb in rule["verbs"]]
    used = {"create trainjobs", "get trainjobs", "delete trainjobs", "get pods", "list pods", "get pods/log"}
    spare = {f"{verb} {resource}" for rule, verb in granted for resource in rule["resources"]} - used
    kube.node_pod(JOB, 0)
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Failed", "x")
    step.outcome()
    step = start()
    until(lambda: kube.count("delete trainjobs") == 1)
    until(lambda: ("trainjobs", JOB) in kube.objects)
    kube.condition(JOB, "Complete")
    step.outcome()
    assert used == set(kube.requests) - {"list nothing"}
    assert not spare


def test_several_nodes_without_a_cluster_are_bad_input(context: StepContext) -> None:
    with pytest.raises(BadInput, match=r"resources\.nodes is 2"):
        train_on_nodes(spec_of(), context, environ={})


def test_nodes_that_nobody_waits_for_are_asked_to_stop_and_others_are_not(store: ObjectStore, prefix: StoreUri) -> None:
    now = [0.0]
    lease = Lease(store, prefix, clock=lambda: 1000.0 + now[0])
    watch = LeaseWatch(store, prefix, patience_s=900, clock=lambda: now[0])
    for _ in range(20):
        lease.renew()
        assert not watch.expired()
        now[0] += 300
    assert len(store.list(prefix)) == 1, "every beat is a new object, and the one before goes"
    now[0] += 900
    assert watch.expired()


def test_storage_that_cannot_be_asked_stops_no_node(prefix: StoreUri, s3_credentials: None) -> None:
    now = [0.0]
    away = connect_store("http://127.0.0.1:9", deadline_s=0.1)
    watch = LeaseWatch(away, prefix, patience_s=900, clock=lambda: now[0])
    now[0] = 10_000
    assert not watch.expired()
    Lease(away, prefix).renew()


def test_a_watch_that_expires_stops_the_process_as_a_signal_would(store: ObjectStore, prefix: StoreUri) -> None:
    asked = threading.Event()
    LeaseWatch(store, prefix, patience_s=0.0, every_s=0.01, on_end=asked.set).start()
    assert asked.wait(10)


def test_a_waiting_step_keeps_its_lease(kube: FakeKube, start: Callable[..., Step], context: StepContext) -> None:
    step = start()
    until(lambda: ("trainjobs", JOB) in kube.objects)
    assert [item.uri.name.partition("-")[0] for item in context.store.list(context.root / "runs" / KEY / "leases")] == ["beat"]
    kube.condition(JOB, "Complete")
    assert step.outcome() is None


@pytest.fixture
def real_nodes(kube: FakeKube, tmp_path: Path, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """The nodes of a TrainJob as real processes that find endpoints and credentials where the cluster's would."""
    found = {**endpoints.environment, "CELEBDIT_STORE": f"s3://celebdit/{tmp_path.name}"}
    kube.run_nodes = tmp_path
    kube.put("secrets", names.S3_SECRET, data={key: found[key] for key in names.SECRET_KEYS[names.S3_SECRET]})
    kube.put("configmaps", names.CONFIG_MAP, data={key: found[key] for key in names.CONFIG_KEYS if key in found})
    kube.rules["pipeline-runner"] += [{"apiGroups": [""], "resources": ["secrets"], "verbs": []}]
    for key, value in {
        **found,
        names.IMAGE: IMAGE,
        "CELEBDIT_RUN_ID": "run-1",
        "KUBECONFIG": str(tmp_path / "pipeline-runner.kubeconfig"),
    }.items():
        monkeypatch.setenv(key, value)
    return kube


def step_on(endpoints: Endpoints, folder: Path, prefix: str) -> StepContext:
    (folder / prefix).mkdir()
    return step_context(
        "train", folder / prefix, f"s3://celebdit/{prefix}", endpoint=endpoints.s3_url, mlflow_uri=endpoints.mlflow_url, run_id=prefix
    )


@pytest.mark.slow
def test_two_real_nodes_train_the_same_network_as_two_processes_of_one(
    real_nodes: FakeKube, endpoints: Endpoints, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    on_nodes, on_one = (step_on(endpoints, tmp_path, prefix) for prefix in (tmp_path.name, f"{tmp_path.name}-one"))
    data = {"name": "faces", "source": "synthetic://?count=20&seed=0&size=16", "image_px": 16, "licence": "CC0-1.0"}
    dataset = ingest(DataConfig.model_validate(data), on_nodes)
    trained = train(recipe, dataset, ResourcesConfig(device="cpu", nodes=2, processes=1), on_nodes)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("CELEBDIT_STORE", str(on_one.root))  # the ranks of one node inherit our environment
        alone = train(recipe, dataset, ResourcesConfig(device="cpu", processes=2), on_one)
    assert trained.step == alone.step == 6
    assert trained.digest == alone.digest
    assert trained.uri != alone.uri
    assert f"{recipe.training.total_steps}/{recipe.training.total_steps}" in capfd.readouterr().err
    again = train(recipe, dataset, ResourcesConfig(device="cpu", nodes=2, processes=1), on_nodes)
    assert again == trained
    assert real_nodes.count("create trainjobs") == 1


@pytest.mark.slow
def test_a_node_that_cannot_start_says_why_through_the_cluster(real_nodes: FakeKube, endpoints: Endpoints, tmp_path: Path) -> None:
    del real_nodes.objects["configmaps", names.CONFIG_MAP]
    with pytest.raises(BadInput, match=r"node [01]: environment variable CELEBDIT_STORE is not set"):
        train_on_nodes(spec_of(device="cpu", processes=1), step_on(endpoints, tmp_path, tmp_path.name), environ=os.environ, poll_s=0.2)


@pytest.mark.slow
def test_a_node_that_cannot_train_says_why_through_the_cluster(real_nodes: FakeKube, endpoints: Endpoints, tmp_path: Path) -> None:
    spec = spec_of(device="cpu", processes=1)  # its data set is nowhere
    with pytest.raises(CelebditError, match=r"node [01]: rank [01]: .*bucket") as failed:
        train_on_nodes(spec, step_on(endpoints, tmp_path, tmp_path.name), environ=os.environ, poll_s=0.2)
    assert failed.value.exit_code in (2, 3, 75)
