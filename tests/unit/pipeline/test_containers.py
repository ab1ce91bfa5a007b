"""What a step in a container receives: endpoints, credentials where they are needed, and nothing else of this machine."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_config
from pipeline.containers import container_arguments, plan_containers

HERE = {
    "CELEBDIT_STORE": "s3://bucket/x",
    "AWS_SECRET_ACCESS_KEY": "canary-aws",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow",
    "KAGGLE_API_TOKEN": "canary-token",
    "KAGGLE_USERNAME": "somebody",
    "KAGGLE_KEY": "canary-key",
    "OMP_NUM_THREADS": "1",
    "HOME": "/home/somebody",
    "PATH": "/usr/bin",
    "GITHUB_TOKEN": "canary-github",
    "AWS_PROFILE": "canary-profile",
    "CELEBDIT_KFP_TOKEN": "canary-kfp",
    "CELEBDIT_KFP_COOKIES": "canary=cookie",
    "CELEBDIT_WEBHOOK_URL": "https://canary",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-flask",
    "MLFLOW_BACKEND_STORE_URI": "postgresql://canary",
    "CELEBDIT_S3_SECRET": "canary-embedded",
}
EVERY_STEP = {
    "CELEBDIT_STORE",
    "CELEBDIT_WORK_DIR",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "OMP_NUM_THREADS",
    "PYTHONSAFEPATH",
}
KAGGLE = {"KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"}


def arguments(folder: Path, source: str) -> dict[str, Any]:
    environment = {**HERE, "CELEBDIT_WORK_DIR": str(folder / "work")}
    plan = plan_containers(load_config("smoke", [f"data.source={source}"]), folder / "run", environment, run_id="run-1")
    options = container_arguments(type(plan).model_validate_json(plan.model_dump_json()), environment, user_id=1000)
    assert set(options["environment"].items()) <= {*environment.items(), ("PYTHONSAFEPATH", "1")}
    return options


@pytest.mark.parametrize(
    ("source", "more"), [("synthetic://?count=4", set()), ("s3://bucket/kaggle/", set()), ("kaggle://owner/faces", KAGGLE)]
)
def test_a_container_gets_the_credentials_that_its_run_needs_and_nothing_of_the_shell(tmp_path: Path, source: str, more: set[str]) -> None:
    assert set(arguments(tmp_path, source)["environment"]) == EVERY_STEP | more


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_local_source_is_mounted_read_only_however_it_is_written(tmp_path: Path, prefix: str) -> None:
    images = tmp_path / "images.zip"
    images.touch()
    mounts = {mount["Target"]: mount["ReadOnly"] for mount in arguments(tmp_path, f"{prefix}{images}")["mounts"]}
    assert mounts[str(images)] is True


def test_a_container_has_no_privileges_and_no_way_to_write_but_its_folders(tmp_path: Path) -> None:
    options = arguments(tmp_path, "synthetic://?count=4")
    assert (options["read_only"], options["cap_drop"], options["security_opt"]) == (True, ["ALL"], ["no-new-privileges"])
    assert options["user"] == "1000:1000"
    assert {mount["Target"] for mount in options["mounts"]} == {str(tmp_path / "run"), str(tmp_path / "work")}
