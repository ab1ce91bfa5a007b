"""The background delivery of a journal: training never waits for it, and an outage loses nothing."""

import threading
import time
from pathlib import Path

import pytest
from celebdit_testing.http_server import answering
from celebdit_testing.metric_store import MetricStore
from celebdit_testing.waiting import wait_until

from components.errors import StorageUnavailable, TrackingRefused
from components.settings import Settings
from components.tracking.delivery import Delivery
from components.tracking.journal import Journal
from components.train.reporting.destination import MlflowDestination
from components.train.reporting.failed_reports import describe_failure


def test_the_background_delivery_reports_an_outage_once_and_catches_up(tmp_path: Path) -> None:
    journal, server, troubles = Journal(tmp_path), MetricStore(), []
    server.unavailable = True
    delivery = Delivery(journal, lambda: server, on_outage=troubles.append, every_s=0.01)
    for step in range(20):
        journal.add_metrics(step, {"a": 1.0})
    while not troubles:
        pass
    server.unavailable = False
    assert delivery.close(within_s=30.0)
    assert len(troubles) == 1
    assert len(server.points) == 20


def test_closing_during_an_outage_reports_it_and_keeps_everything(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    server.unavailable = True
    delivery = Delivery(journal, lambda: server, on_outage=lambda error: None, every_s=0.01)
    journal.add_metrics(1, {"a": 1.0})
    assert not delivery.close(within_s=30.0)
    assert len(journal.pending_entries()[0]) == 1


def test_closing_waits_no_longer_than_asked_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    answer = threading.Event()

    class Hanging(MetricStore):
        def _answer(self) -> None:
            stop_requested.set()
            answer.wait()

    journal, server, stop_requested = Journal(tmp_path), Hanging(), threading.Event()
    delivery = Delivery(journal, lambda: server, on_outage=lambda error: None, every_s=0.01)
    journal.add_metrics(1, {"a": 1.0})
    assert stop_requested.wait(30.0)
    began_s = time.monotonic()
    assert not delivery.close(within_s=0.2)
    assert time.monotonic() - began_s < 20
    assert len(journal.pending_entries()[0]) == 1
    answer.set()


@pytest.mark.parametrize(("status", "delay_s"), [(413, 0.0), (200, 120.0)])
def test_an_mlflow_that_refuses_or_hangs_costs_training_nothing_and_loses_nothing(status: int, delay_s: float, tmp_path: Path) -> None:
    journal, outages = Journal(tmp_path), list[Exception]()
    journal.add_metrics(1, {"loss": 0.5})
    with answering() as server:
        server.answer_with(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode(), delay_s=delay_s)
        environment = {"CELEBDIT_STORE": "s3://bucket/x", "CELEBDIT_RUN_ID": "r1", "MLFLOW_TRACKING_URI": server.address}
        settings = Settings.from_environment(environment)
        delivery = Delivery(journal, lambda: MlflowDestination(settings, "0123456789abcdef"), on_outage=outages.append, every_s=0.01)
        wait_until(lambda: bool(server.requests), timeout_s=30)
        began_s = time.monotonic()
        journal.add_metrics(2, {"loss": 0.4})
        assert time.monotonic() - began_s < 10, "recording waits for nothing"
        assert not delivery.close(within_s=1.0)
        assert time.monotonic() - began_s < 30
        assert server.requests
    assert (status != 413) or "413" in str(outages[0])
    assert len(journal.pending_entries()[0]) == 2


@pytest.mark.parametrize(
    ("status", "start", "action"),
    [
        (503, "MLflow is unavailable; training continues and uploads its metrics later: ", None),
        (401, "MLflow at {} refuses access: ", "check MLFLOW_TRACKING_USERNAME"),
        (403, "MLflow at {} refuses access: ", "ask an administrator of MLflow for it"),
    ],
)
def test_a_refusal_is_not_noted_as_an_outage_and_says_what_to_do(status: int, start: str, action: str | None, tmp_path: Path) -> None:
    """As when the token of a training expires, or its user loses a right, while it runs: waiting does not help."""
    journal, outages = Journal(tmp_path), list[Exception]()
    journal.add_metrics(1, {"loss": 0.5})
    with answering() as server:
        server.answer_with(f"HTTP/1.1 {status} x\r\nContent-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        environment = {"CELEBDIT_STORE": "s3://bucket/x", "CELEBDIT_RUN_ID": "r1", "MLFLOW_TRACKING_URI": server.address}
        settings = Settings.from_environment(environment)
        delivery = Delivery(journal, lambda: MlflowDestination(settings, "0123456789abcdef"), on_outage=outages.append, every_s=0.01)
        wait_until(lambda: bool(outages), timeout_s=60)
        delivery.close(within_s=30.0)
    note = describe_failure(outages[0], "0123456789abcdef")
    assert note.startswith(start.format(server.address))
    assert "training continues" in note
    assert ("run `celebdit sync 0123456789abcdef`" in note) == (action is not None)
    assert action is None or action in note
    assert len(journal.pending_entries()[0]) == 1


def test_an_outage_that_ends_in_a_refusal_is_noted_as_one_too(tmp_path: Path) -> None:
    """As where the token of a training has expired when MLflow is back."""
    journal, outages = Journal(tmp_path), list[Exception]()
    journal.add_metrics(1, {"loss": 0.5})
    failures = iter([ConnectionError("reset"), ConnectionError("reset"), TrackingRefused("no"), TrackingRefused("no")])

    def connect() -> MlflowDestination:
        raise next(failures, TrackingRefused("no"))

    delivery = Delivery(journal, connect, on_outage=outages.append, every_s=0.01)
    wait_until(lambda: len(outages) > 1)
    delivery.close(within_s=30.0)
    assert [type(outage) for outage in outages] == [ConnectionError, TrackingRefused]


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (StorageUnavailable("get s3://b/x failed"), "metrics of earlier attempts cannot be uploaded to MLflow yet; training continues"),
        (ConnectionError("reset"), "MLflow is unavailable; training continues and uploads its metrics later: reset"),
    ],
)
def test_object_storage_that_fails_is_not_called_mlflow(error: Exception, start: str) -> None:
    assert describe_failure(error, "0123456789abcdef").startswith(start)
