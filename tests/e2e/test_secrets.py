"""Secrets planted as canaries in a whole run of the pipeline are found in nothing that it leaves behind, and on no command line."""

import threading
from pathlib import Path

import psutil
import pytest
from celebdit_testing.command import celebdit

from pipeline.services import Services

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
PLANTED = {"MLFLOW_TRACKING_PASSWORD": "canary-mlflow-3c5f01", "CELEBDIT_KFP_TOKEN": "canary-kfp-7a9b22", "AWS_SESSION_TOKEN": ""}


class CommandLines(threading.Thread):
    """Collects the command lines of all processes until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.seen = set[str]()

    def run(self) -> None:
        while not self.done.wait(0.2):
            self.seen |= {" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])}


def test_no_secret_is_left_anywhere(embedded: Services) -> None:
    secrets = {value.encode() for value in PLANTED.values() if value}
    secrets.add(embedded.wait().environment["AWS_SECRET_ACCESS_KEY"].encode())
    watch = CommandLines()
    watch.start()
    ran = celebdit("run", "smoke", "--json", "training.seed=5", home=embedded.home, **PLANTED)
    failed = celebdit("run", "smoke", "data.min_images=999", home=embedded.home, **PLANTED)
    watch.done.set()
    watch.join()
    assert (ran.code, failed.code) == (0, 3), ran.err + failed.err
    written = {path: path.read_bytes() for path in Path(embedded.home).rglob("*") if path.is_file()}
    names = {path.name for path in written}
    assert {"mlflow.db", "log.txt", "events.jsonl", "services.json", "mlflow.log"} <= names
    assert any(b"training.seed" in content for content in written.values()), "MLflow's fields are among what is searched"
    assert any("pipeline.local" in line for line in watch.seen), "the run's processes are among what is searched"
    for secret in secrets:
        assert not [path for path, content in written.items() if secret in content]
        assert secret.decode() not in ran.out + ran.err + failed.out + failed.err
        assert not [line for line in watch.seen if secret.decode() in line]
