"""Run a worker module as several ranks on this machine, with torchrun, and raise the reason if it fails.

Promises: the error that is raised is that of the rank that failed first; a SIGTERM to this process reaches the ranks and lets them save;
no rank outlives this process. The ranks of one machine meet through files in a folder that only this user can open: nothing listens beyond
the loopback interface, and neither the machine's hostname nor the environment decides where they meet. Those of several nodes meet at the
place that the environment describes; see `rendezvous.py`.
"""

import logging
import math
import os
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from components.environment import WORK_DIR
from components.errors import RankLost, TemporaryFailure
from components.reports.plural import plural
from components.runtime.agent_report import (
    REPORT_FILE,
    agent_killed,
    count_oom_kills,
    lost_processes,
    name_stopped,
    not_started,
    read_report,
)
from components.runtime.rank_failures import FAILURES, RUN_AGAIN, failed_processes, first_failure, raise_if_preempted
from components.runtime.rendezvous import NODE_TIMEOUT_S, Nodes, single_machine
from components.runtime.signal_flag import SignalFlag
from components.system.child_environment import child_environment, compiler_caches
from components.system.disk import RUN_BYTES, DiskFull, free_bytes, has_no_files
from components.system.heap import HEAP
from components.system.process import spawn, stop
from components.system.python_process import python_command

_START_TIMEOUT_S = 300.0
_MARGIN_S = 5
_POLL_S = 0.1
_REASON_BYTES = 2**14
"""What a rank needs to record why it failed."""
_log = logging.getLogger(__name__)

GRACE_S = 25.0
"""How long ranks may take to save their work after they were asked to stop: what is on the disk of this machine is uploaded later."""


def launch(
    module: str,
    spec_path: Path,
    *,
    work_dir: Path,
    processes: int,
    threads: int,
    standalone: bool = True,
    start_timeout_s: float = _START_TIMEOUT_S,
    node_timeout_s: float = NODE_TIMEOUT_S,
    grace_s: float = GRACE_S,
    signals: SignalFlag | None = None,
) -> None:
    """Run `python -m module spec_path` as `processes` ranks and wait for them; they read their job from the file at `spec_path`.

    The ranks use `work_dir` as this process does, get of its environment what ranks need, and run in the folder of the spec. What torchrun
    writes itself lies beside the spec, until the next launch.

    Unless `standalone`, this machine is one of several, which the PET_ variables of the environment describe, and it waits `node_timeout_s`
    for the others. Ranks of which none has started `start_timeout_s` later are ended, and ranks that were asked to stop after `grace_s`. A
    caller that records signals itself passes its `signals`.

    Raises:
        CelebditError: what the first failing rank reported, `Preempted` after SIGTERM, or `TemporaryFailure` if no rank started or one was
            killed.
    """
    nodes = None if standalone else Nodes.from_environment(os.environ)
    spec_path, work_dir = spec_path.absolute(), work_dir.absolute()
    failures = spec_path.parent / FAILURES
    logs = spec_path.parent / "torchrun"
    for folder in (failures, logs):
        shutil.rmtree(folder, ignore_errors=True)
    environment = rank_environment(work_dir, threads=threads)
    recording = SignalFlag() if signals is None else nullcontext(signals)
    with recording as stop_request, tempfile.TemporaryDirectory(prefix="rendezvous-", dir=spec_path.parent) as rendezvous:
        if nodes is None:
            options, environment = single_machine(Path(rendezvous), environment)
        else:
            options, environment = nodes.options(timeout_s=node_timeout_s), nodes.environment(environment)
        command = [
            *python_command("components.runtime.agent", str(failures / REPORT_FILE), "torch.distributed.run"),
            *options,
            f"--nproc-per-node={processes}",
            "--max-restarts=0",
            f"--shutdown-timeout={math.ceil(grace_s) + _MARGIN_S}",  # this process is the one that ends it
            f"--log-dir={logs}",
            "-m",
            module,
            str(spec_path),
        ]
        _log.info("starting %d x %s, threads of each: %d", processes, module, threads)
        # A process group of its own, so that a signal to the step's group reaches torchrun once, through `stop`.
        agent = spawn(command, environment=environment, new_group=True, folder=spec_path.parent)
        deadline_s = time.monotonic() + start_timeout_s + (0.0 if nodes is None else node_timeout_s)
        oom_kills_before = count_oom_kills()
        never_started = False
        while agent.poll() is None and not stop_request.received and not never_started:
            time.sleep(_POLL_S)
            never_started = time.monotonic() > deadline_s and not any(failures.glob("started-*"))
        status = stop(agent, grace_s=grace_s) if stop_request.received or never_started else agent.wait()
    if never_started:
        raise TemporaryFailure(
            f"of {plural(processes, 'process', 'processes')} of {module} none started within {start_timeout_s:.0f} s",
            hint="read the log above; run it again, and look for a full or very slow disk if it happens again",
        )
    if stop_request.received:
        raise_if_preempted(failures, stop_request.received_s)
        status = abs(status)  # a signal that ended torchrun was ours
    _raise_failure(
        failures,
        status,
        module,
        processes=processes,
        first_rank=0 if nodes is None else nodes.node_rank * processes,
        node_timeout_s=None if nodes is None else node_timeout_s,
        oom_kills=count_oom_kills() - oom_kills_before,
    )


def _raise_failure(
    failures: Path, status: int, module: str, *, processes: int, first_rank: int, node_timeout_s: float | None, oom_kills: int
) -> None:
    """Raise why ranks or torchrun failed, the cause before its consequences; return if they did not."""
    first, report, explained = first_failure(failures), read_report(failures / REPORT_FILE), failed_processes(failures)
    if status != 0 and first is None and (free_bytes(failures.parent) < _REASON_BYTES or has_no_files(failures.parent)):
        raise DiskFull.of(failures.parent, "a run", needed_bytes=RUN_BYTES)
    if missing := not_started(report, module, timeout_s=node_timeout_s):
        raise missing
    if first is None or isinstance(first, RankLost):
        if lost := lost_processes(report, explained=explained, oom_kills=oom_kills):
            raise lost
        if status < 0:
            raise agent_killed(-status, oom_kills=oom_kills)
    if isinstance(first, RankLost):
        raise name_stopped(first, report, processes=processes, first_rank=first_rank, explained=explained)
    if first is not None:
        raise first
    if status != 0:
        raise TemporaryFailure(f"torchrun ended with status {status}", hint=f"read the log above; {RUN_AGAIN}")


def rank_environment(work_dir: Path, *, threads: int) -> dict[str, str]:
    """Return the environment of ranks: what they need of this process's own, limits of threads, and how their memory is allocated."""
    return {**compiler_caches(work_dir), **HEAP, **child_environment("rank"), **_thread_limits(threads), WORK_DIR: str(work_dir)}


def _thread_limits(threads: int) -> dict[str, str]:
    """Limit every numeric library of a process to `threads`, and let idle threads sleep, so that ranks do not compete for cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**{name: str(threads) for name in names}, "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
