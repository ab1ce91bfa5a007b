"""The train step in a thread, beside a Kubernetes API server that grants what docker/kubernetes grants and no more."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from celebdit_testing.recipes import dataset_manifest, tiny_recipe

from components.kube.client import Cluster
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.train.spec import TrainSpec
from components.train.trainjob.job import train_on_nodes
from components.train.trainjob.manifest import job_name

MANIFESTS = Path(__file__).parents[3] / "docker" / "kubernetes"
KEY = "0123456789abcdef"
JOB = job_name(KEY)
IMAGE = "registry.example/celebdit-gpu@sha256:" + "b" * 64
MLFLOW_PASSWORD = "canary-mlflow-0123456789"
Start = Callable[..., "Step"]


def spec_of(attempt: str = "a1", **resources: Any) -> TrainSpec:
    return TrainSpec(
        run_key=KEY,
        attempt=attempt,
        dataset=dataset_manifest(),
        resources=ResourcesConfig(**{"nodes": 2, "device": "cuda", "processes": 8, **resources}),
        **dict(tiny_recipe()),
    )


def in_pod(context: StepContext) -> StepContext:
    """The context of a step that runs in a pod of Kubeflow Pipelines."""
    return replace(context, settings=replace(context.settings, image=IMAGE, pod="train-pod"))


def connect(tmp_path: Path, account: str = "pipeline-runner", deadline_s: float = 5.0) -> Cluster:
    return Cluster.connect({"KUBECONFIG": str(tmp_path / f"{account}.kubeconfig")}, deadline_s=deadline_s)


class Step(threading.Thread):
    """The train step in a thread, so that a test can play the cluster beside it."""

    def __init__(self, tmp_path: Path, context: StepContext, spec: TrainSpec, account: str = "pipeline-runner") -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._call = lambda: train_on_nodes(spec, in_pod(context), cluster=connect(tmp_path, account), poll_s=0.02)

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    def outcome(self) -> BaseException | None:
        self.join(20)
        assert not self.is_alive(), "the step does not end"
        return self.error
