"""A cluster on which nothing is missing, its Kubeflow Pipelines, and its image registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.diagnosed_clusters import DIGEST, INSIDE, PASSWORD, Registry, encoded, write_lock
from celebdit_testing.http_server import serving
from celebdit_testing.kfp_server import FakeKfp, kfp_server
from celebdit_testing.kube_server import FakeKube, kube_server
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY
from celebdit_testing.trainjobs import MANIFESTS

from components import deployment as names
from components.environment import KFP_NAMESPACE, KFP_TOKEN


@pytest.fixture
def registry() -> Iterator[str]:
    with serving(Registry) as address:
        yield address.removeprefix("http://")


@pytest.fixture
def kfp() -> Iterator[FakeKfp]:
    with kfp_server() as fake:
        yield fake


@pytest.fixture
def kube(tmp_path: Path, registry: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKube]:
    """A cluster on which nothing is missing, whose MLflow cannot be reached from here."""
    with kube_server(tmp_path) as fake:
        fake.load_rights(MANIFESTS / "pipeline" / "rbac.yaml")
        fake.put("namespaces", "kubeflow", metadata={"labels": {"pod-security.kubernetes.io/enforce": "baseline"}})
        fake.put("serviceaccounts", names.SERVICE_ACCOUNT)
        fake.put("secrets", names.S3_SECRET, data=encoded(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY))
        fake.put("secrets", names.MLFLOW_SECRET, data=encoded(MLFLOW_TRACKING_USERNAME="steps", MLFLOW_TRACKING_PASSWORD=PASSWORD))
        settings = {"CELEBDIT_STORE": "s3://bucket/doctor", "MLFLOW_TRACKING_URI": INSIDE, "AWS_ENDPOINT_URL": moto_endpoint}
        fake.put("configmaps", names.CONFIG_MAP, data=settings)
        fake.put("clustertrainingruntimes", names.TRAINING_RUNTIME)
        fake.put("nodes", "cpu-0", status={"allocatable": {"cpu": "4", "memory": "8Gi"}})
        taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
        for index in range(2):
            allocatable = {"nvidia.com/gpu": "8"}
            fake.put(
                "nodes",
                f"gpu-{index}",
                metadata={"labels": {"pool": "h200"}},
                spec={"taints": [taint]},
                status={"allocatable": allocatable},
            )
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "admin.kubeconfig"))
        for name in (KFP_TOKEN, KFP_NAMESPACE, "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "CELEBDIT_STORE"):
            monkeypatch.delenv(name, raising=False)
        write_lock(tmp_path, f"{registry}/team/celebdit@{DIGEST}")
        monkeypatch.chdir(tmp_path)
        yield fake


@pytest.fixture
def outside(kube: FakeKube, registry: str) -> None:
    """MLflow at an address that can be reached from here."""
    kube.objects["configmaps", names.CONFIG_MAP]["data"]["MLFLOW_TRACKING_URI"] = f"http://{registry}"
