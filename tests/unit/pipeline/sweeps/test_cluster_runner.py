"""A sweep on Kubeflow Pipelines: several runs at once, found again after a kill, resumed after a failure, the winner registered."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.submissions import OPTIONS, connect
from celebdit_testing.sweeps import report_of, small_sweep, sweep_of

from components.storage import ObjectStore, StoreUri
from components.storage import connect as connect_store
from pipeline.sweeps.cluster_runner import ClusterRunner
from pipeline.sweeps.coordinator import Coordinator
from pipeline.sweeps.halving import Done
from pipeline.sweeps.journal import Journal
from pipeline.sweeps.records import SweepState
from pipeline.sweeps.sweep_file import Sweep

SETTINGS = """
[settings.data]
source = "synthetic://?count=48&seed=0&size=64"
"""

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]


class Killed(BaseException):
    pass


@pytest.fixture
def store(rclone_endpoint: str) -> ObjectStore:
    return connect_store(rclone_endpoint, deadline_s=5.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path, text=small_sweep(SETTINGS))


def steps_in(server: FakeKfp, run: Any) -> set[str]:
    """The steps of the pipeline that a run is of."""
    package = server.packages[run.pipeline_version_reference.pipeline_version_id]
    spec = next(yaml.load_all(package, yaml.CSafeLoader))
    return {name.removeprefix("exec-") for name in spec["deploymentSpec"]["executors"]}


def runner(server: FakeKfp, on_sleep: Any, *, parallel: int = 2) -> ClusterRunner:
    return ClusterRunner(connect(server), OPTIONS, "faces", parallel, report_of, sleep=on_sleep, clock=lambda: 0.0)


def advance(server: FakeKfp) -> None:
    """Let every run that is not at its end succeed, with what its pipeline has."""
    for run in server.runs.values():
        if run.state not in ("SUCCEEDED", "FAILED"):
            for step in ("train", "evaluate", *(("register",) if "register" in steps_in(server, run) else ())):
                server.step(run, step, "SUCCEEDED")
            server.end(run)


def invocation(sweep: Sweep, store: ObjectStore, folder: StoreUri, cluster: ClusterRunner) -> tuple[SweepState, object]:
    journal = Journal(store, folder)
    state = SweepState.of(journal.read())
    return state, Coordinator(sweep, journal, cluster, lambda config: None, clock=lambda: 0.0).run(state)


def test_trials_run_at_once_without_gate_and_the_winner_with_it(
    server: FakeKfp, sweep: Sweep, store: ObjectStore, prefix: StoreUri
) -> None:
    at_once = []

    def sleep(seconds: float) -> None:
        at_once.append(sum(run.state not in ("SUCCEEDED", "FAILED") for run in server.runs.values()))
        advance(server)

    state, end = invocation(sweep, store, prefix, runner(server, sleep))
    assert end == Done()
    assert at_once[0] == 2
    *trials, final = server.runs.values()
    assert len(trials) == 3
    assert all("register" not in steps_in(server, run) and "evaluate" in steps_in(server, run) for run in trials)
    assert {"gate", "register", "finalize"} <= steps_in(server, final)
    assert state.finished is not None
    assert (state.finished.gate, state.finished.run_id) == ("pass", final.run_id)
    assert state.values(state.finished.trial) == {"optimizer.lr_peak": 2e-3}
    assert state.device_s > 0


def test_killed_while_its_runs_go_on_it_finds_them_again(server: FakeKfp, sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    def kill(seconds: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        invocation(sweep, store, prefix, runner(server, kill))
    assert len(server.runs) == 2
    _, end = invocation(sweep, store, prefix, runner(server, lambda seconds: advance(server)))
    assert end == Done()
    assert len(server.runs) == 4, "no run was submitted twice"


def test_a_run_that_failed_is_resumed(server: FakeKfp, sweep: Sweep, store: ObjectStore, prefix: StoreUri) -> None:
    failures = []

    def fail_once(seconds: float) -> None:
        if not failures:
            run = next(iter(server.runs.values()))
            failures.append(run.run_id)
            server.step(run, "train", "FAILED", "main: Error (exit code 75)")
            server.end(run, "FAILED")
        else:
            advance(server)

    state, end = invocation(sweep, store, prefix, runner(server, fail_once))
    assert end == Done()
    assert server.count("run_service_retry_run") == 1
    assert len(server.runs) == 4
    assert not state.failed, "it has a score in the end"
