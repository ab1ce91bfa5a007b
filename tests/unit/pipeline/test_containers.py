"""What a step in a container receives: endpoints, credentials where they are needed, and nothing else of this machine."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from celebdit_testing.http_server import Handler, serving

from components.gate.component import gate
from pipeline.config import load_config
from pipeline.container_engine import remove_containers
from pipeline.containers import RUN_LABEL, TO_ALL, _wait_for_step, container_arguments, plan_containers

HERE = {
    "CELEBDIT_STORE": "s3://bucket/x",
    "CELEBDIT_LIFELINE": "/run/lifeline",
    "CELEBDIT_STORE_DISK": "/home/somebody/.celebdit/s3",
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
    "CELEBDIT_LIFELINE",
    "CELEBDIT_WORK_DIR",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "OMP_NUM_THREADS",
    "PYTHONSAFEPATH",
    "TINI_KILL_PROCESS_GROUP",
}
KAGGLE = {"KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"}


def arguments(folder: Path, source: str) -> dict[str, Any]:
    environment = {**HERE, "CELEBDIT_WORK_DIR": str(folder / "work")}
    plan = plan_containers(load_config("smoke", [f"data.source={source}"]), folder / "run", environment, run_id="run-1")
    options = container_arguments(type(plan).model_validate_json(plan.model_dump_json()), environment, user_id=1000)
    assert set(options["environment"].items()) <= {*environment.items(), ("PYTHONSAFEPATH", "1"), *TO_ALL.items()}
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


class Engine(Handler):
    """The three requests of a Docker API with which containers are found and removed."""

    removed: ClassVar[list[str]] = []

    def do_GET(self) -> None:  # noqa: N802 - the base class names it so
        if self.target.endswith("/version"):
            self.answer(200, {"ApiVersion": "1.44"})
            return
        assert self.target.endswith("/containers/json")
        labels = {"a1": "io.celebdit.run=killed-1", "b2": "io.celebdit.run=other-1", "c3": "io.celebdit.run=killed-1"}
        (wanted,) = json.loads(self.query["filters"])["label"]
        assert self.query["all"] == "1", "one that has stopped, too"
        self.answer(200, [{"Id": name} for name, label in labels.items() if label == wanted])

    def do_DELETE(self) -> None:  # noqa: N802
        assert self.query["force"] == "True"
        self.removed.append(self.target.rsplit("/", 1)[-1])
        self.answer(404 if self.removed[-1] == "c3" else 204, {"message": "gone"} if self.removed[-1] == "c3" else b"")


def test_containers_of_a_killed_run_are_removed_and_those_of_others_are_not() -> None:
    with serving(Engine) as address:
        assert remove_containers(address.replace("http://", "tcp://"), f"{RUN_LABEL}=killed-1") == 2
    assert Engine.removed == ["a1", "c3"]


def test_the_shell_that_kfp_puts_around_a_step_waits_for_it() -> None:
    container = gate.component_spec.implementation.container
    assert container is not None
    shell, options, script, *arguments = container.command
    assert (shell, options) == ("sh", "-ec"), "what is changed is what kfp makes"
    assert _wait_for_step(container.command) == ["sh", "-ec", f"trap : TERM\n{script}", *arguments]
    assert _wait_for_step(["python", "-c", "pass"]) == ["python", "-c", "pass"]
