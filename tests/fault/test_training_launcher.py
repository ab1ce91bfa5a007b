"""The launcher and torchrun under kills: no worker is orphaned, no second writer begins, and the run is still the same run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from celebdit_testing.ranks import Training, ended, small_dataset
from celebdit_testing.recipes import tiny_recipe
from celebdit_testing.waiting import wait_until

from components.errors import TemporaryFailure
from components.resources import ResourcesConfig
from components.storage import StoreUri

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 400
SUPPORT = Path(__file__).parents[1] / "support"


class Launched:
    """A launcher process and what runs below it."""

    def __init__(self, training: Training) -> None:
        self.training = training
        path = training.folder / "request.json"
        training.spec().dump(path)
        environment = {**os.environ, **training.machine_environment(), "PYTHONPATH": str(SUPPORT)}
        self._log = (training.folder / "launcher.log").open("ab")
        command = [sys.executable, "-m", "celebdit_testing.launcher", str(path)]
        self.process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=subprocess.STDOUT)

    def below(self, module: str) -> list[psutil.Process]:
        """Return the processes that work in this training's folder and run `module`."""
        processes = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if module in line and str(self.training.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                processes.append(process)
        return processes

    def wait(self, timeout_s: float = 240) -> int:
        return self.process.wait(timeout_s)

    def advance(self, steps: int, timeout_s: float = 180) -> None:
        goal = self.training.lines() + steps
        wait_until(lambda: self.training.lines() >= goal, timeout_s=timeout_s, alive=lambda: self.process.poll() is None, reason=self.log)

    def log(self) -> str:
        return (self.training.folder / "launcher.log").read_text() + (self.training.folder / "events.jsonl").read_text()


def test_kills_of_launcher_and_agent_leave_no_orphan_and_no_second_writer(tmp_path: Path, rclone_endpoint: str) -> None:
    root = StoreUri("bucket", tmp_path.parent.name) / tmp_path.name
    dataset = small_dataset(tmp_path / "data", rclone_endpoint, root)
    recipe = tiny_recipe(total_steps=STEPS, batch_images=12, log_every_steps=1, checkpoint_keep_every_steps=10)
    resources = ResourcesConfig(device="cpu", processes=2, rank_timeout_s=30.0)
    training = Training(tmp_path / "run", rclone_endpoint, root / "run", recipe, dataset, resources)
    training.folder.mkdir()

    first = Launched(training)
    lock = training.work / "launcher.lock"
    wait_until(lambda: lock.exists() and lock.read_text() == str(first.process.pid), timeout_s=120, every_s=0.05)
    second = Launched(training)
    assert second.wait() == TemporaryFailure.exit_code
    assert f"is under way in process {first.process.pid}" in second.log()

    first.advance(15)
    assert len(first.below("components.train.worker")) >= 3, "torchrun and two ranks"
    first.process.kill()
    first.process.wait()
    wait_until(lambda: not first.below("components.train.worker"), timeout_s=40, every_s=0.05)

    third = Launched(training)
    third.advance(15)
    (agent,) = third.below("torch.distributed.run")
    agent.kill()
    wait_until(lambda: not [p for p in third.below("components.train.worker") if p.pid != agent.pid], timeout_s=20, every_s=0.05)
    assert third.wait() == TemporaryFailure.exit_code
    assert "torchrun was killed by SIGKILL, and its ranks with it, not by the launcher" in third.log()

    fourth = Launched(training)
    fourth.advance(15)
    began_s = time.monotonic()
    fourth.process.send_signal(signal.SIGTERM)
    assert fourth.wait(40) == TemporaryFailure.exit_code
    assert time.monotonic() - began_s < 30
    assert not fourth.below("components.train.worker")
    assert training.checkpoints.list_committed()[0].step == max(training.recorded_values())

    assert Launched(training).wait() == 0
    alone = Training(tmp_path / "alone", rclone_endpoint, root / "alone", recipe, dataset, resources)
    with ended(alone.start(2)) as ranks:
        assert ranks.wait(240) == [0, 0]
    assert training.final_digest() == alone.final_digest()
    assert training.recorded_values() == alone.recorded_values()
