"""Secrets planted as canaries appear in no file that a complete run leaves behind, and on no command line."""

from contextlib import suppress
from pathlib import Path

import pytest
from celebdit_testing.command import celebdit
from celebdit_testing.first_run import PLANTED, CommandLines, FirstRun

from pipeline.services import Services

pytestmark = pytest.mark.e2e


def test_no_secret_is_left_anywhere(watched_first_run: FirstRun, embedded: Services, tmp_path: Path) -> None:
    for index in range(48):
        (tmp_path / f"{index}.jpg").write_bytes(b"not an image")
    secrets = {value.encode() for value in PLANTED.values() if value}
    secrets |= {embedded.wait().environment[name].encode() for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN")}
    ran, watch = watched_first_run.finished, CommandLines()
    watch.start()
    failed = celebdit("run", "smoke", f"data.source={tmp_path}", home=embedded.home, **PLANTED)
    command_lines = watched_first_run.command_lines + watch.stop()
    assert (ran.code, failed.code) == (0, 3), ran.err + failed.err
    files = contents(embedded.home)
    names = {path.name for path in files}
    assert {"mlflow.db", "log.txt", "events.jsonl", "services.json", "mlflow.log"} <= names
    assert any(b"training.seed" in content for content in files.values()), "MLflow's fields are among what is searched"
    assert any("pipeline.local" in line for line in command_lines), "the run's processes are among what is searched"
    for secret in secrets:
        assert not [path for path, content in files.items() if secret in content]
        assert secret.decode() not in ran.out + ran.err + failed.out + failed.err
        assert not [line for line in command_lines if secret.decode() in line]


def test_no_process_of_a_run_imports_from_the_folder_of_the_command_or_has_a_secret_that_only_the_command_needs(
    watched_first_run: FirstRun,
) -> None:
    assert watched_first_run.finished.code == 0, watched_first_run.finished.err
    for part in (
        "pipeline.local",
        "kfp.dsl.executor_main",
        "torch.distributed.run",
        "components.train.worker",
        "decoding.decoder",
        "pipeline.mlflow_app",
        "rclone",
    ):
        assert any(part in line for line in watched_first_run.command_lines), f"{part} is among what is searched"
    assert watched_first_run.marks == []
    children = [line for line in watched_first_run.holders if "celebdit run smoke" not in line and "git -C" not in line]
    assert watched_first_run.holders, "the command itself has the token"
    assert children == []


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below `folder`; another test may delete one meanwhile."""
    contents_by_path = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):
            contents_by_path[path] = path.read_bytes()
    return contents_by_path
