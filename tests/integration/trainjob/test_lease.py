"""Nodes whose step no longer waits stop themselves, others do not."""

import json
import threading
from pathlib import Path

import pytest
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.trainjobs import JOB, KEY, Start
from celebdit_testing.waiting import wait_until

from components.errors import BadInput
from components.runtime.context import StepContext
from components.storage import ObjectStore, StoreUri
from components.storage import connect as connect_store
from components.train.trainjob.lease import Lease, LeaseWatch, require_not_ended
from components.train.trainjob.node_ranks import run_node


def test_nodes_without_a_waiting_step_are_stopped_and_others_are_not(store: ObjectStore, prefix: StoreUri) -> None:
    now = [0.0]
    lease = Lease(store, prefix, clock=lambda: 1000.0 + now[0])
    watch = LeaseWatch(store, prefix, timeout_s=900, clock=lambda: now[0])
    for _ in range(20):
        lease.renew()
        assert not watch.is_expired()
        now[0] += 300
    assert len(store.list(prefix)) == 1, "every beat is a new object, and the one before goes"
    now[0] += 900
    assert watch.is_expired()


def test_storage_that_cannot_be_asked_stops_no_node(prefix: StoreUri, s3_credentials: None) -> None:
    now = [0.0]
    unreachable = connect_store("http://127.0.0.1:9", deadline_s=0.1)
    watch = LeaseWatch(unreachable, prefix, timeout_s=900, clock=lambda: now[0])
    now[0] = 10_000
    assert not watch.is_expired()
    Lease(unreachable, prefix).renew()


def test_a_watch_that_expires_stops_the_process_as_a_signal_would(store: ObjectStore, prefix: StoreUri) -> None:
    stop_requested = threading.Event()
    LeaseWatch(store, prefix, timeout_s=0.0, every_s=0.01, on_end=stop_requested.set).start()
    assert stop_requested.wait(10)


@pytest.fixture
def words(context: StepContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this process the environment of a node; returns where it writes why it ended."""
    settings = context.settings
    environment = {
        "CELEBDIT_STORE": settings.store_uri,
        "AWS_ENDPOINT_URL": str(settings.s3_endpoint),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "CELEBDIT_RUN_ID": "r",
        "CELEBDIT_WORK_DIR": str(tmp_path),
        "CELEBDIT_LAST_WORDS": str(tmp_path / "last-words"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "last-words"


@pytest.mark.parametrize("end", ["Failed", "Complete"])
def test_a_trainjob_that_comes_back_after_its_end_trains_nothing(
    end: str, kube: FakeKube, start: Start, context: StepContext, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = context.layout.run(KEY).leases
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    arguments = kube.objects["trainjobs", JOB]["spec"]["trainer"]["args"]
    require_not_ended(context.store, leases, "a1")
    kube.condition(JOB, end)
    step.outcome()
    require_not_ended(context.store, leases, "a2")  # a retried step makes another attempt
    monkeypatch.setattr("components.train.trainjob.node_ranks.launch", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as ended:  # JobSet's time to live deleted the job's pods, and Trainer made them again
        run_node(arguments)
    assert ended.value.code == BadInput.exit_code
    assert "has ended and was started again" in json.loads(words.read_text())["message"]


def test_a_node_gives_its_ranks_the_time_to_stop_that_the_job_has(
    kube: FakeKube, start: Start, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr("components.train.trainjob.node_ranks.launch", lambda *_, grace_s, **__: given.append(grace_s))
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    arguments = kube.objects["trainjobs", JOB]["spec"]["trainer"]["args"]
    run_node([arguments[0], "4711"])
    assert given == [4711.0]
    for wrong in (arguments[:1], [arguments[0], "soon"]):
        with pytest.raises(SystemExit) as ended:
            run_node(wrong)
        assert ended.value.code == BadInput.exit_code
        assert "seconds that its ranks get to stop" in json.loads(words.read_text())["message"]
    kube.condition(JOB, "Complete")
    assert step.outcome() is None


def test_a_waiting_step_keeps_its_lease(kube: FakeKube, start: Start, context: StepContext) -> None:
    step = start()
    wait_until(lambda: ("trainjobs", JOB) in kube.objects)
    assert [item.uri.name.partition("-")[0] for item in context.store.list(context.layout.run(KEY).leases)] == ["beat"]
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
