"""What torchrun's agent reports to the launcher, and the error that follows from it.

Promises: pure but for reading and writing the report. A process that ended by itself is distinguished from one that was stopped because
another had failed, a signal is named, and lack of memory is named only if the kernel counted it.
"""

import json
import re
import signal
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from components.errors import RankLost, TemporaryFailure, shorten
from components.reports.plural import plural
from components.runtime.memory_hint import LESS_MEMORY

REPORT_FILE = "agent.json"
_RUN_AGAIN = "run it again: finished work is kept"
_CLIENTS_JOINED = re.compile(r"(\d+)/(\d+) clients joined")


@dataclass(frozen=True)
class RankExit:
    """How one process ended: its rank, its number on its machine, and its exit status, negative for a signal."""

    rank: int
    process: int
    status: int

    @property
    def cause(self) -> str:
        """How it ended, in words."""
        return cause_of(self.status)


@dataclass(frozen=True)
class AgentReport:
    """What torchrun saw on one machine before it stopped the rest."""

    exits: tuple[RankExit, ...] = ()
    error: str | None = None
    """Why torchrun could not start the ranks."""


def write_report(path: Path, report: AgentReport) -> None:
    """Write `report` for the launcher."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(report)))


def read_report(path: Path) -> AgentReport:
    """Return the report at `path`, an empty one if the agent wrote none."""
    try:
        raw = json.loads(path.read_text())
        return AgentReport(exits=tuple(RankExit(**entry) for entry in raw["exits"]), error=raw["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return AgentReport()


def cause_of(status: int) -> str:
    """Return in words how a process with that exit status ended, negative for a signal."""
    return f"was killed by {signal_name(-status)}" if status < 0 else f"ended with status {status}"


def signal_name(number: int) -> str:
    """Return the name of a signal, like SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def not_started(report: AgentReport, module: str, *, timeout_s: float | None) -> TemporaryFailure | None:
    """Return the error of a machine whose ranks torchrun could not start, or None if it started them.

    `timeout_s` is how long this machine waits for the other nodes, None if there are none.
    """
    if report.error is None:
        return None
    counts = _CLIENTS_JOINED.search(report.error)
    reason = (
        f"{counts[1]} of {counts[2]} nodes came within {timeout_s or 0:.0f} s"
        if counts
        else shorten(report.error.splitlines()[0], max_characters=300)
    )
    waits = "look for a pod that is pending or cannot reach the first node; resources.node_timeout_s is how long nodes wait for each other"
    return TemporaryFailure(
        f"no rank of {module} was started: {reason}", hint=_RUN_AGAIN if timeout_s is None else f"{waits}. {_RUN_AGAIN.capitalize()}"
    )


def lost_processes(report: AgentReport, *, explained: Collection[int], oom_kills: int) -> TemporaryFailure | None:
    """Return the error of the processes that ended by themselves without a reason of their own, or None if there are none.

    `explained` are the processes of this machine that recorded a reason; `oom_kills` counts how often the kernel ended a process for lack
    of memory meanwhile.
    """
    silent = sorted((exited for exited in report.exits if exited.process not in explained), key=lambda exited: exited.rank)
    if not silent:
        return None
    text = "; ".join(f"rank {exited.rank} {exited.cause}" for exited in silent)
    if not any(exited.status == -signal.SIGKILL for exited in silent):
        return TemporaryFailure(f"{text} without a reason", hint=f"read the log above; {_RUN_AGAIN}")
    return _kill_error(text, oom_kills=oom_kills)


def agent_killed(number: int, *, oom_kills: int) -> TemporaryFailure:
    """Return the error of a machine whose agent, and with it every rank, ended by signal `number`."""
    return _kill_error(f"torchrun was killed by {signal_name(number)}, and its ranks with it", oom_kills=oom_kills)


def step_killed(number: int, *, oom_kills: int) -> TemporaryFailure:
    """Return the error of a step on one machine whose process ended by signal `number`."""
    text = f"its process was killed by {signal_name(number)}"
    if number != signal.SIGKILL:
        return TemporaryFailure(f"{text} without a reason", hint=f"read the log of the run; {_RUN_AGAIN}")
    return _kill_error(text, oom_kills=oom_kills, remedy="free memory")


def _kill_error(text: str, *, oom_kills: int, remedy: str = f"free memory or {LESS_MEMORY}") -> TemporaryFailure:
    if oom_kills:
        text += f": the kernel ended {plural(oom_kills, 'process', 'processes')} for lack of memory meanwhile"
        return TemporaryFailure(text, hint=f"{remedy}, then {_RUN_AGAIN}")
    return TemporaryFailure(f"{text}, not by the launcher; the kernel counted no lack of memory", hint=_RUN_AGAIN)


def name_stopped(error: RankLost, report: AgentReport, *, processes: int, first_rank: int, explained: Collection[int]) -> RankLost:
    """Return `error` with the ranks of this machine that were still running: torchrun stopped them, and one of them did not answer."""
    ended = {exited.process for exited in report.exits} | set(explained)
    running = [str(first_rank + process) for process in range(processes) if process not in ended]
    if not report.exits or not running:
        return error
    ranks = f"{'rank' if len(running) == 1 else 'ranks'} {', '.join(running)}"
    return RankLost(f"{error.message}; {ranks} did not end and had to be stopped by the launcher", hint=error.hint)


def count_oom_kills(root: Path = Path("/")) -> int:
    """Return how many processes the kernel has ended for lack of memory, in this control group if it counts them, else on this machine."""
    for path in (root / "sys/fs/cgroup/memory.events", root / "proc/vmstat"):
        with suppress(OSError):
            counts = dict(line.split() for line in path.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0
