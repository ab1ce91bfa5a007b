"""What the doctor says of a cluster's nodes: their size, their GPUs, and the images that they can pull."""

from pathlib import Path

import pytest
from celebdit_testing.diagnosed_clusters import DIGEST, diagnose, taint_nodes, write_lock
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.kube_server import FakeKube


def test_a_step_that_no_node_can_take_is_named_with_its_request(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_nodes = [kube.objects["nodes", f"gpu-{index}"] for index in range(2)]
    for node in gpu_nodes:
        node["status"]["allocatable"] |= {"cpu": "15500m", "memory": f"{120 * 2**20}Ki"}
    wide = ["resources.cpu=16000m", "resources.memory=64Gi"]
    code, checks, _ = diagnose(capsys, kfp, *wide)
    (check,) = checks["requests"]
    assert (code, check["state"]) == (2, "fail")
    assert check["found"].startswith("train, evaluate would stay Pending: each requests 16000m CPU and 64Gi, the largest node")
    assert "15500m CPU and 120.0Gi (gpu-" in check["found"]
    assert "resources.cpu" in check["fix"]
    kube.objects["nodes", "cpu-0"]["status"]["allocatable"]["cpu"] = "400m"
    _, checks, _ = diagnose(capsys, kfp, "resources.cpu=15500m")
    (check,) = checks["requests"]
    assert "preflight, ingest, train, gate, register, finalize would stay Pending: each requests 500m" in check["found"]
    assert "resources.light_cpu" in check["fix"]
    _, checks, _ = diagnose(capsys, kfp, *wide, "resources.light_cpu=400m")
    assert [check["state"] for check in checks["requests"]] == ["fail"]
    assert diagnose(capsys, kfp, "resources.light_cpu=400m")[1]["requests"][0]["state"] == "ok"


def test_gpu_nodes_are_matched_by_count_label_and_toleration(kube: FakeKube, kfp: FakeKfp, capsys: pytest.CaptureFixture[str]) -> None:
    taint_nodes(kube)
    assert diagnose(capsys, kfp, 'resources.tolerations=[{key="reserved"}]')[1]["gpus"][0]["state"] == "ok"
    assert "no node has 16" in diagnose(capsys, kfp, "resources.processes=16", "training.batch_images=32")[1]["gpus"][0]["found"]
    assert "has the labels" in diagnose(capsys, kfp, 'resources.node_selector={pool="a100"}')[1]["gpus"][0]["found"]
    assert diagnose(capsys, kfp, "resources.device=cpu")[1]["gpus"][0]["state"] == "ok"


def test_images_that_no_node_can_pull_are_found(
    kube: FakeKube, kfp: FakeKfp, registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image, state in (
        (f"{registry}/team/other@{DIGEST}", "fail"),
        (f"{registry}/private/celebdit@{DIGEST}", "unknown"),
        (f"localhost/celebdit@{DIGEST}", "fail"),
        (f"127.0.0.1:9/team/celebdit@{DIGEST}", "unknown"),
    ):
        write_lock(tmp_path, image)
        assert diagnose(capsys, kfp)[1]["images"][0]["state"] == state, image
    (tmp_path / "images.lock.json").unlink()
    assert "make images" in diagnose(capsys, kfp)[1]["images"][0]["fix"]
