"""`celebdit run` is killed in one step after the other; the next one finds what is left, and in the end the run is whole."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from celebdit_testing.command import COMMAND
from celebdit_testing.processes import command_line, processes_below
from celebdit_testing.waiting import wait_until
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from components.environment import LIFELINE
from components.errors import TemporaryFailure
from components.system.lifeline import GRACE_S
from components.system.process_table import is_alive
from pipeline.local_runs import read_run
from pipeline.services import Services

pytestmark = [pytest.mark.fault, pytest.mark.slow]
SETTINGS = (
    "data.source=synthetic://?count=64&seed=5&size=64",
    "training.total_steps=60",
    "training.seed=5",
    "registry.model_name=celebdit-kills",
)


class Run:
    """One `celebdit run` in a session of its own, and every process that was seen below it."""

    def __init__(self, home: Path) -> None:
        before = set((home / "runs").glob("smoke-*"))
        self._output = (home / "output.txt").open("w+")
        command = [*COMMAND, "run", "smoke", *SETTINGS, "--home", str(home), "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=self._output, text=True, start_new_session=True
        )
        wait_until(lambda: set((home / "runs").glob("smoke-*")) > before or self.process.poll() is not None, timeout_s=120, every_s=0.05)
        assert self.process.poll() is None, self.output()
        (self.folder,) = set((home / "runs").glob("smoke-*")) - before

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def events(self) -> list[dict[str, object]]:
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def kill_at(self, step: str, running: str, ready: Callable[["Run"], bool]) -> list[str]:
        """SIGKILL the command as soon as `step` has a process that runs `running`; return the command lines of what was below it."""

        def moment() -> bool:
            assert self.process.poll() is None, self.output()
            return ready(self) and any(running in line for line in self._lines())

        wait_until(moment, timeout_s=180, every_s=0.05)
        below = psutil.Process(self.process.pid).children(recursive=True)
        lines = self._lines()
        assert len([process for process in below if is_alive(process)]) >= 4, "guardian, runner, shell, step"
        assert marked(self.folder) >= 4
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not [process for process in below if is_alive(process)], timeout_s=GRACE_S + 7, every_s=0.05)
        assert marked(self.folder) == 0
        return lines

    def _lines(self) -> list[str]:
        return [" ".join(command_line(process)) for process in processes_below(self.process.pid)]


def marked(folder: Path) -> int:
    count = 0
    for process in psutil.process_iter():
        try:
            count += process.environ().get(LIFELINE) == str(folder / "lifeline") and is_alive(process)
        except psutil.Error:
            continue
    return count


def mlflow_runs(embedded: Services, folder: Path) -> list[MlflowRun]:
    """Return the runs in MLflow that belong to the pipeline run in `folder`."""
    client = MlflowClient(embedded.wait().mlflow_url)
    experiment = client.get_experiment_by_name("celebdit")
    return list(client.search_runs([experiment.experiment_id], f"tags.`celebdit.pipeline_run` = '{folder.name}'"))


def has(step: str, kind: str) -> Callable[[Run], bool]:
    return lambda run: any(event["step"] == step and event["kind"] == kind for event in run.events())


def test_killed_in_every_step_it_leaves_no_process_and_the_next_run_goes_on(embedded: Services) -> None:
    home, client = embedded.home, MlflowClient(embedded.wait().mlflow_url)
    moments = {
        "ingest": ("components.ingest.decoding.decoder", has("ingest", "started")),
        "train": ("components.train.worker", has("train", "progress")),
        "evaluate": ("components.evaluate.worker", has("evaluate", "started")),
        "register": ("components.serving.server", has("register", "started")),
    }
    killed = []
    for step, (running, ready) in moments.items():
        began_s = time.monotonic()
        run = Run(home)
        run.kill_at(step, running, ready)
        print(f"{step}: {time.monotonic() - began_s:.0f} s")
        for earlier in killed[-1:]:
            assert f"run {earlier.folder.name} was killed before it could close" in run.output()
        killed.append(run)
    last = Run(home)
    out, _ = last.process.communicate(timeout=200)
    assert last.process.returncode == 0, last.output()
    assert json.loads(out)["model"]["version"] == "1"
    experiment = client.get_experiment_by_name("celebdit")
    for run in killed:
        statuses = {child.data.tags.get("celebdit.step", "pipeline"): child.info.status for child in mlflow_runs(embedded, run.folder)}
        assert statuses.pop("train", "FINISHED") == "FINISHED", "one MLflow run for all attempts, which the last one finished"
        assert statuses["pipeline"] == "KILLED"
        assert set(statuses.values()) <= {"KILLED", "FINISHED"}
        assert not (run.folder / "open.json").exists()
    assert "register" in statuses
    assert statuses["register"] == "KILLED"
    assert not (last.folder / "open.json").exists()
    output = last.output()
    assert "celebdit sync" not in output
    key = json.loads(out)["run_key"]
    (trained,) = client.search_runs([experiment.experiment_id], f"tags.`celebdit.run_key` = '{key}' and tags.`celebdit.step` = 'train'")
    steps = [point.step for point in client.get_metric_history(trained.info.run_id, "train/loss")]
    assert sorted(steps) == sorted(set(steps))
    assert max(steps) == 60


def test_a_closed_terminal_stops_a_run_as_sigterm_does(embedded: Services) -> None:
    """SIGHUP goes to the whole session whose terminal closes, more than once, and the terminal cannot be written to any more."""
    main, terminal = os.openpty()
    home, before = embedded.home, set((embedded.home / "runs").glob("smoke-*"))
    arguments = ["training.total_steps=100000", "training.checkpoint_every_s=1000.0", "training.seed=78"]
    code = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [COMMAND[0], "-c", code, *COMMAND[1:], "run", "smoke", *arguments, "--home", str(home)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output = b""
    deadline_s = time.monotonic() + 150
    while b"/100000" not in output:
        assert time.monotonic() < deadline_s, output.decode(errors="replace")
        output += os.read(main, 65536)
    (folder,) = [path for path in set((home / "runs").glob("smoke-*")) - before if 'seed\\":78' in (path / "arguments.json").read_text()]
    assert marked(folder) >= 5
    os.close(main)
    process.send_signal(signal.SIGHUP)
    assert process.wait(90) == 130
    assert marked(folder) == 0
    assert not (folder / "open.json").exists(), "it closed the run itself"
    stopped = read_run(folder)
    assert stopped is not None
    assert stopped.state == "interrupted", "although the training's step reports that it was stopped"
    step_runs = mlflow_runs(embedded, folder)
    assert {run.data.tags.get("celebdit.step", "pipeline"): run.info.status for run in step_runs}["train"] == "KILLED"
    assert {run.info.status for run in step_runs} <= {"KILLED", "FINISHED"}
    key = next(run.data.tags["celebdit.run_key"] for run in step_runs if "celebdit.run_key" in run.data.tags)
    assert list(home.glob(f"s3/celebdit/main/runs/{key}/checkpoints/*/*/COMMIT.json")), "the step had time to save"


def test_a_killed_runner_is_reported_and_the_command_closes_the_run(embedded: Services) -> None:
    run = Run(embedded.home)
    wait_until(lambda: has("preflight", "finished")(run) or run.process.poll() is not None, timeout_s=120, every_s=0.05)
    assert run.process.poll() is None, run.output()
    (guardian,) = processes_below(run.process.pid, running="components.system.guardian")
    (runner,) = guardian.children()
    runner.kill()
    assert run.process.wait(90) == TemporaryFailure.exit_code, run.output()
    assert "the local pipeline runner was killed by SIGKILL" in run.output()
    assert marked(run.folder) == 0
    assert not (run.folder / "open.json").exists()
    step_runs = mlflow_runs(embedded, run.folder)
    assert "RUNNING" not in {child.info.status for child in step_runs}
    assert next(child.info.status for child in step_runs if "celebdit.step" not in child.data.tags) == "FAILED"
    failed = read_run(run.folder)
    assert failed is not None
    assert (failed.state, "runner was killed by SIGKILL" in str(failed.why)) == ("failed", True)
