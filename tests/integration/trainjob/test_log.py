"""The log of a training's first node as the step prints it: each line once, in order, whatever becomes of the streams."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from celebdit_testing.kube_logs import Break
from celebdit_testing.kube_server import FakeKube
from celebdit_testing.steps import notes
from celebdit_testing.trainjobs import JOB, Start
from celebdit_testing.waiting import wait_until
from hypothesis import given
from hypothesis import strategies as st

from components.errors import TemporaryFailure
from components.kube import client as kube_module
from components.runtime.context import StepContext
from components.train.trainjob.log import LogPosition

POD = f"{JOB}-node-0-0"


def lines(first: int, last: int) -> list[str]:
    return [f"[train] {number}/100 loss 0.5" for number in range(first, last)]


def train_lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("[train]")]


def test_the_log_of_node_0_is_shown_and_waiting_pods_are_explained(
    kube: FakeKube, start: Start, context: StepContext, capfd: pytest.CaptureFixture[str]
) -> None:
    kube.logs.add_lines(POD, *lines(0, 3))
    kube.logs.add_lines(POD, "[train] the end", line_feed="")
    kube.logs.add_lines(f"{JOB}-node-0-1", "[train] the other node")
    scheduled = {"type": "PodScheduled", "status": "False", "message": "0/5 nodes are available: 5 Insufficient nvidia.com/gpu."}
    kube.node_pod(JOB, 0)
    kube.node_pod(JOB, 1, phase="Pending", conditions=[scheduled])
    step = start()
    wait_until(lambda: any("Insufficient nvidia.com/gpu" in note for note in notes(context)))
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert train_lines(capfd) == [*lines(0, 3), "[train] the end"]


@pytest.mark.parametrize("every_s", [0.3, 0.0], ids=["apart", "at-one-time"])
@pytest.mark.parametrize(
    "breaks",
    [
        [Break(0)],
        [Break(3)],
        [Break(5), Break(2), Break(0), Break(1)],
        [Break(4, "end")],
        [Break(2, "end"), Break(7), Break(0, "end")],
    ],
    ids=lambda breaks: "-".join(f"{each.kind}{each.after_lines}" for each in breaks),
)
def test_a_stream_that_breaks_off_is_picked_up_with_no_line_twice_and_none_lost(
    kube: FakeKube, start: Start, capfd: pytest.CaptureFixture[str], breaks: list[Break], every_s: float
) -> None:
    kube.logs.breaks = list(breaks)
    kube.logs.add_lines(POD, *lines(0, 9), every_s=every_s)
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: not kube.logs.breaks)
    kube.logs.add_lines(POD, *lines(9, 12), every_s=every_s)  # after the breaks, and while the log is followed again
    wait_until(lambda: len(kube.logs.streams) > len(breaks))
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert train_lines(capfd) == lines(0, 12)
    if breaks[0].after_lines:
        assert all("sinceTime" in query for query in kube.logs.streams[1:]), "what is printed is not asked for again"


def test_what_comes_after_a_break_at_the_very_end_is_fetched(kube: FakeKube, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    kube.logs.breaks = [Break(6), Break(1)]
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: kube.logs.streams)
    with kube.lock:  # all of it between two looks of the step
        kube.logs.add_lines(POD, *lines(0, 9))
        kube.condition(JOB, "Failed", "jobset failed")
    assert isinstance(step.outcome(), TemporaryFailure)
    assert not kube.logs.breaks
    assert train_lines(capfd) == lines(0, 9)


def test_a_stream_that_falls_silent_is_asked_for_again(
    kube: FakeKube, start: Start, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is gone without a word leaves a connection on which nothing ever comes."""
    monkeypatch.setitem(kube_module._STREAMED, "_request_timeout", (10.0, 0.2))
    kube.logs.add_lines(POD, *lines(0, 3))
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: len(kube.logs.streams) > 2)
    kube.logs.add_lines(POD, *lines(3, 5))
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert train_lines(capfd) == lines(0, 5)


def test_the_log_of_a_replacement_pod_is_shown_from_its_beginning(kube: FakeKube, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    kube.logs.add_lines(POD, *lines(0, 3))
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: kube.logs.streams)
    kube.objects["pods", POD]["status"]["phase"] = "Failed"
    wait_until(lambda: len(kube.logs.streams) == 2)
    time.sleep(0.2)
    assert len(kube.logs.streams) == 2, "a log that is complete is not asked for again"
    kube.logs.lines[POD].clear()
    kube.logs.add_lines(POD, *lines(1, 4))
    kube.node_pod(JOB, 0)
    wait_until(lambda: len(kube.logs.streams) == 3)
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert train_lines(capfd) == [*lines(0, 3), *lines(1, 4)]
    assert "sinceTime" not in kube.logs.streams[2]


@pytest.mark.parametrize(("status", "num_requests"), [(400, 3), (404, 3), (500, 3), (403, 1)])
def test_a_log_that_cannot_be_read_stops_nothing(
    kube: FakeKube, start: Start, capfd: pytest.CaptureFixture[str], status: int, num_requests: int
) -> None:
    """What may change is tried again; a right that is missing is asked for once."""
    kube.faults += [("get", "pods/log", status)] * 2
    kube.logs.add_lines(POD, *lines(0, 3))
    kube.node_pod(JOB, 0)
    step = start()
    wait_until(lambda: kube.count("get pods/log") >= num_requests)
    time.sleep(0.2)
    kube.condition(JOB, "Complete")
    assert step.outcome() is None
    assert train_lines(capfd) == (lines(0, 3) if num_requests > 1 else [])
    assert (kube.count("get pods/log") == 1) == (num_requests == 1)


GAPS = st.lists(st.sampled_from([0, 0, 1, 400_000, 1_300_000]), min_size=1, max_size=30)
"""Microseconds between lines."""


@given(gaps=GAPS, cuts=st.lists(st.integers(0, 12), max_size=6), partial=st.booleans())
def test_any_breaks_of_any_log_leave_each_line_once(gaps: list[int], cuts: list[int], partial: bool) -> None:
    moment, log = datetime(2026, 1, 1, tzinfo=UTC), list[tuple[datetime, str]]()
    for number, gap in enumerate(gaps):
        moment += timedelta(microseconds=gap)
        log.append((moment, f"line {number}"))
    position, unread = LogPosition(), list[str]()

    def stream(cut: int | None) -> Iterator[str]:
        since = position.at.replace(microsecond=0) if position.at is not None else None
        stream_lines = [f"{at.isoformat()} {text}\n" for at, text in log if since is None or at >= since]
        yield from stream_lines if cut is None else stream_lines[:cut]
        if cut is not None and partial and cut < len(stream_lines):
            yield stream_lines[cut].removesuffix("\n")[:-1]

    for cut in cuts:
        unread += position.unread(stream(cut), to_the_end=False)
    unread += position.unread(stream(None), to_the_end=True)
    assert unread == [text for _, text in log]
