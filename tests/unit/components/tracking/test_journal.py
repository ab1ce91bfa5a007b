"""The journal: nothing lost, nothing twice, whatever fails in between."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from celebdit_testing.metric_store import MetricStore
from hypothesis import given, settings
from hypothesis import strategies as st

from components.tracking.journal import MARK_FILE, Journal
from components.tracking.metric_points import Point, missing_points


def test_a_recorded_metric_arrives_once_with_its_own_time(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    journal.add_metrics(10, {"train/loss": 0.5, "train/lr": 1e-3})
    journal.add_image(10, "samples/ema_grid", np.zeros((4, 4, 3), np.uint8))
    first_ms = journal.pending_entries()[0][0].timestamp_ms
    assert journal.deliver(server)
    assert not journal.deliver(server)
    assert [(p.key, p.step, p.value, p.timestamp_ms) for p in server.points] == [
        ("train/loss", 10, 0.5, first_ms),
        ("train/lr", 10, 1e-3, first_ms),
    ]
    assert server.images == [("samples/ema_grid", 10)]


def test_nothing_is_lost_while_the_server_is_unavailable(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    server.unavailable = True
    for step in range(5):
        journal.add_metrics(step, {"a": float(step)})
        with pytest.raises(ConnectionError):
            journal.deliver(server)
    server.unavailable = False
    journal.deliver(server)
    assert [(p.key, p.step) for p in server.points] == [("a", step) for step in range(5)]


def test_an_answer_that_was_lost_does_not_double_points(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    journal.add_metrics(1, {"a": 1.0})
    server.fails_after_sending = True
    with pytest.raises(ConnectionError):
        journal.deliver(server)
    server.fails_after_sending = False
    journal.deliver(server)
    assert len(server.points) == 1


def test_a_resumed_attempt_that_repeats_steps_adds_nothing(tmp_path: Path) -> None:
    server = MetricStore()
    first, second = Journal(tmp_path / "first"), Journal(tmp_path / "second")
    for step in range(10):
        first.add_metrics(step, {"a": float(step)})
    first.deliver(server)
    for step in range(6, 14):
        second.add_metrics(step, {"a": float(step)})
    second.deliver(server)
    assert Counter((p.key, p.step) for p in server.points) == Counter(("a", step) for step in range(14))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["record", "deliver", "outage", "recovery", "lose", "restart"]), max_size=40))
def test_any_order_of_failures_and_restarts_ends_with_each_point_once(tmp_path_factory: pytest.TempPathFactory, actions: list[str]) -> None:
    folder, server, step = tmp_path_factory.mktemp("journal"), MetricStore(), 0
    journal = Journal(folder)
    for action in [*actions, "recovery", "deliver"]:
        match action:
            case "record":
                journal.add_metrics(step, {"a": 1.0, "b": 2.0})
                step += 1
            case "deliver":
                try:
                    journal.deliver(server)
                except ConnectionError:
                    pass
            case "outage":
                server.unavailable = True
            case "recovery":
                server.unavailable = server.fails_after_sending = False
            case "lose":
                server.fails_after_sending = True
            case "restart":
                journal = Journal(folder)
    assert Counter((p.key, p.step) for p in server.points) == Counter((key, s) for key in "ab" for s in range(step))


def test_an_incomplete_last_line_is_skipped_until_it_is_complete(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    journal.add_metrics(1, {"a": 1.0})
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"metric": "a", "st')
    journal.deliver(server)
    assert len(server.points) == 1
    continued = Journal(tmp_path)
    continued.add_metrics(2, {"a": 2.0})
    continued.deliver(server)
    assert [point.step for point in server.points] == [1, 2]


def test_a_file_arrives_under_its_artifact_path(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    journal.add_file("profile/step-10.json", lambda path: path.write_text("trace") and None)
    journal.deliver(server)
    assert server.files == {"profile/step-10.json": "trace"}


def test_points_are_deduplicated_by_key_and_step() -> None:
    points = [Point("a", 1, 1.0, 5), Point("a", 1, 2.0, 6), Point("b", 1, 3.0, 7), Point("a", 2, 4.0, 8)]
    assert missing_points(points, {"a": {2}}) == [points[0], points[2]]


def test_what_was_uploaded_to_a_run_that_is_gone_is_uploaded_to_the_next(tmp_path: Path) -> None:
    journal, first, second = Journal(tmp_path), MetricStore(), MetricStore()
    journal.set_receiver("first")
    journal.add_metrics(1, {"a": 1.0})
    journal.deliver(first)
    journal.set_receiver("first")
    assert not journal.deliver(first)
    Journal(tmp_path).set_receiver("second")
    assert journal.deliver(second)
    assert [(point.key, point.step) for point in second.points] == [("a", 1)]
    assert journal.deliver_again(second) == 0
    second.points.clear()
    assert journal.deliver_again(second) == 1


def test_an_image_that_was_lost_on_disk_does_not_stop_the_entries_after_it(tmp_path: Path) -> None:
    journal, server = Journal(tmp_path), MetricStore()
    for step in (1, 2, 3):
        journal.add_image(step, "a", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "a-000000001.png").unlink()
    (tmp_path / "a-000000002.png").write_bytes(b"damaged")
    assert journal.deliver(server)
    assert server.images == [("a", 3)]


@pytest.mark.parametrize("mark", ["", "x", "-1", "9" * 30, "\0"])
def test_a_damaged_mark_means_that_nothing_was_uploaded_yet(tmp_path: Path, mark: str) -> None:
    journal = Journal(tmp_path)
    journal.add_metrics(1, {"loss": 0.5})
    (tmp_path / MARK_FILE).write_text(mark)
    assert journal.mark == 0
    entries, end = journal.pending_entries()
    assert len(entries) == 1
    journal.set_mark(end)
    assert journal.mark == end > 0
