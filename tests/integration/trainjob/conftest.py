"""A cluster for the train step, where it can make TrainJobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.steps import step_context
from celebdit_testing.trainjobs import MANIFESTS, Start, Step, spec_of

from components.runtime.context import StepContext
from components.train.spec import TrainSpec


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


@pytest.fixture
def start(tmp_path: Path, context: StepContext, kube: FakeKube) -> Start:
    def started(spec: TrainSpec | None = None, account: str = "pipeline-runner") -> Step:
        step = Step(tmp_path, context, spec or spec_of(), account)
        step.start()
        return step

    return started
