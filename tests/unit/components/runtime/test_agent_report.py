"""The error that follows from what torchrun saw."""

import signal
from pathlib import Path

import pytest

from components.errors import RankLost
from components.runtime.agent_report import (
    AgentReport,
    RankExit,
    agent_killed,
    count_oom_kills,
    lost_processes,
    name_stopped,
    not_started,
    read_report,
    write_report,
)

KILLED = AgentReport(exits=(RankExit(rank=5, process=1, status=-signal.SIGKILL),))


def test_a_report_is_read_back_and_a_missing_or_cut_one_is_empty(tmp_path: Path) -> None:
    write_report(tmp_path / "folder" / "agent.json", KILLED)
    assert read_report(tmp_path / "folder" / "agent.json") == KILLED
    assert read_report(tmp_path / "none.json") == AgentReport()
    (tmp_path / "cut.json").write_text('{"exits": [{"rank"')
    assert read_report(tmp_path / "cut.json") == AgentReport()


def test_nodes_that_did_not_come_are_counted() -> None:
    report = AgentReport(error="Timed out after 601 seconds waiting for clients. 3/4 clients joined.")
    error = not_started(report, "worker", timeout_s=600.0)
    assert error is not None
    assert error.message == "no rank of worker was started: 3 of 4 nodes came within 600 s"
    assert "resources.node_timeout_s" in str(error.hint)
    assert "memory" not in error.message + str(error.hint)
    assert not_started(KILLED, "worker", timeout_s=600.0) is None


def test_lack_of_memory_is_named_only_where_the_kernel_counted_it() -> None:
    error = lost_processes(KILLED, explained=(), oom_kills=0)
    assert error is not None
    assert error.message == "rank 5 was killed by SIGKILL, not by the launcher; the kernel counted no lack of memory"
    error = lost_processes(KILLED, explained=(), oom_kills=2)
    assert error is not None
    assert error.message == "rank 5 was killed by SIGKILL: the kernel ended 2 processes for lack of memory meanwhile"
    assert "1 process for lack of memory" in agent_killed(9, oom_kills=1).message


@pytest.mark.parametrize(
    ("status", "cause"), [(-11, "was killed by SIGSEGV"), (-40, "was killed by signal 40"), (3, "ended with status 3")]
)
def test_other_ends_are_named(status: int, cause: str) -> None:
    error = lost_processes(AgentReport(exits=(RankExit(0, 0, status),)), explained=(), oom_kills=3)
    assert error is not None
    assert error.message == f"rank 0 {cause} without a reason"


def test_a_process_with_a_reason_of_its_own_is_not_lost() -> None:
    assert lost_processes(KILLED, explained={1}, oom_kills=0) is None


def test_ranks_that_were_still_running_are_named_as_stopped_by_the_launcher() -> None:
    report = AgentReport(exits=(RankExit(4, 0, 75),))
    error = name_stopped(RankLost("rank 4: another rank is gone"), report, processes=3, first_rank=4, explained={0, 2})
    assert error.message == "rank 4: another rank is gone; rank 5 did not end and had to be stopped by the launcher"
    same = RankLost("rank 4: another rank is gone")
    assert name_stopped(same, report, processes=1, first_rank=4, explained={0}) is same
    assert name_stopped(same, AgentReport(), processes=2, first_rank=0, explained={0}) is same


def test_the_kernels_count_is_that_of_the_control_group_where_it_has_one(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "vmstat").write_text("nr_free_pages 5\noom_kill 7\n")
    assert count_oom_kills(tmp_path) == 7
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert count_oom_kills(tmp_path) == 1
    assert count_oom_kills() >= 0
