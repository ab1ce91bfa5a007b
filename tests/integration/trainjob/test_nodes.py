"""Nodes of a TrainJob as real processes, started with the environment that Kubeflow Trainer gives them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.ranks import NOWHERE, Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.steps import step_context
from celebdit_testing.trainjobs import in_pod, spec_of
from mlflow import MlflowClient

from components import deployment as names
from components.errors import BadInput, CelebditError
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.train.train import run as train
from components.train.trainjob.job import train_on_nodes
from pipeline.services import Endpoints

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.fixture
def nodes(kube: FakeKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """A cluster whose nodes find endpoints and credentials where a real one's would, and nowhere else."""
    kube.run_nodes = tmp_path
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "pipeline-runner.kubeconfig"))
    return kube


def configure(nodes: FakeKube, settings: dict[str, str]) -> None:
    nodes.put("secrets", names.S3_SECRET, data={key: settings[key] for key in names.SECRET_KEYS[names.S3_SECRET] if key in settings})
    nodes.put("configmaps", names.CONFIG_MAP, data={key: settings[key] for key in names.CONFIG_KEYS if key in settings})


def test_two_nodes_train_the_same_network_as_two_processes_of_one(
    nodes: FakeKube, endpoints: Endpoints, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here torchrun and all that a node must find for itself are the real ones; the two processes are the worker's code without them."""
    root, recipe, resources = f"s3://celebdit/{tmp_path.name}", tiny_recipe(), ResourcesConfig(device="cpu", nodes=2, processes=1)
    configure(nodes, {**endpoints.environment, "CELEBDIT_STORE": root, "CELEBDIT_EXPERIMENT": "tests"})
    # A pod's Secret has a user name and a password; the embedded server takes its token as the password.
    user = {"MLFLOW_TRACKING_USERNAME": "steps", "MLFLOW_TRACKING_PASSWORD": endpoints.environment["MLFLOW_TRACKING_TOKEN"]}
    nodes.put("secrets", names.MLFLOW_SECRET, data=user)
    servers = {"endpoint": endpoints.s3_url, "mlflow_uri": endpoints.mlflow_url}
    context = in_pod(step_context("train", tmp_path, root, run_id=tmp_path.name, **servers))
    dataset = small_dataset(tmp_path / "data", endpoints.s3_url, context.root)
    trained = train(recipe, dataset, resources, context)
    alone = Training(tmp_path / "alone", endpoints.s3_url, context.root / "alone", recipe, dataset)
    with ended(alone.start(2)) as ranks:
        assert ranks.wait() == [0, 0]
    assert trained.step == recipe.training.total_steps
    assert trained.digest == alone.final_digest()
    assert f"{trained.step}/{trained.step}" in capfd.readouterr().err, "the log of node 0 is shown"
    client = MlflowClient(endpoints.mlflow_url)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs(
        [experiment.experiment_id], f"tags.`celebdit.run_key` = '{trained.run_key}' and tags.`celebdit.step` = 'train'"
    )
    assert run.data.metrics["train/loss"] > 0, "node 0 found MLflow"
    assert train(recipe, dataset, resources, context) == trained
    assert nodes.count("create trainjobs") == 1


def test_a_node_that_cannot_start_says_why_through_the_cluster(nodes: FakeKube, context: StepContext) -> None:
    spec = spec_of(device="cpu", processes=1)
    with pytest.raises(BadInput, match=r"node [01]: environment variable CELEBDIT_STORE is not set"):
        train_on_nodes(spec, in_pod(context), poll_s=0.1)


def test_a_rank_that_cannot_train_says_why_through_its_node_and_the_cluster(
    nodes: FakeKube, context: StepContext, moto_endpoint: str
) -> None:
    """One node is enough for this: its rank loads torch and MLflow, finds no such data, and everybody passes it on."""
    configure(nodes, {**os.environ, "CELEBDIT_STORE": str(context.root), "AWS_ENDPOINT_URL": moto_endpoint, "MLFLOW_TRACKING_URI": NOWHERE})
    spec = spec_of(device="cpu", processes=1, nodes=1)
    with pytest.raises(CelebditError, match=r"node 0: rank 0: .*datasets/faces/") as failed:
        train_on_nodes(spec, in_pod(context), poll_s=0.1)
    assert failed.value.exit_code in (2, 3, 75)


def test_what_starts_a_nodes_ranks_does_not_load_torch() -> None:
    """It would take seconds and half a gigabyte on every node, beside the ranks that need it."""
    program = "import sys, components.train.trainjob.node; print(sorted({'torch', 'mlflow', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"
