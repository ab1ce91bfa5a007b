"""Run a worker module as several ranks on this machine, with torchrun, and raise the reason if it fails.

Promises: the error that is raised is that of the rank that failed first; a SIGTERM to this process reaches the ranks and lets them save;
no rank outlives this process. The ranks of one machine meet through files in a folder that only this user can open: nothing listens beyond
the loopback interface, and neither the machine's hostname nor the environment decides where they meet. Those of several nodes meet at the
place that the environment describes; see `rendezvous.py`.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from components.environment import WORK_DIR
from components.errors import CelebditError, Failure, Preempted, RankLost, TemporaryFailure, error_for_exit_code
from components.runtime.agent_report import (
    REPORT_FILE,
    agent_killed,
    count_oom_kills,
    lost_processes,
    name_stopped,
    not_started,
    read_report,
)
from components.runtime.redact import redactor
from components.runtime.rendezvous import NODE_TIMEOUT_S, Nodes, single_machine
from components.system.child_environment import child_environment
from components.system.disk import RUN_BYTES, DiskFull, free_bytes
from components.system.process import spawn, stop
from components.system.python_process import python_command

FAILURES = "failures"
"""Folder beside the spec in which ranks record that they started, and why they failed."""
_START_TIMEOUT_S = 300.0
_GRACE_S = 25.0
_POLL_S = 0.1
_RUN_AGAIN = "run it again: finished work is kept"
_REASON_BYTES = 2**14
"""What a rank needs to record why it failed."""
_log = logging.getLogger(__name__)


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
    signals: "SignalFlag | None" = None,
) -> None:
    """Run `python -m module spec_path` as `processes` ranks and wait for them; they read their job from the file at `spec_path`.

    The ranks use `work_dir` as this process does, get of its environment what ranks need, and run in the folder of the spec. What torchrun
    writes itself lies beside the spec, until the next launch.

    Unless `standalone`, this machine is one of several, which the PET_ variables of the environment describe, and it waits `node_timeout_s`
    for the others. Ranks of which none has started `start_timeout_s` later are ended. A caller that records signals itself passes
    its `signals`.

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
    environment = {
        **_compiler_caches(work_dir),
        **child_environment("rank"),
        **_thread_limits(threads),
        WORK_DIR: str(work_dir),
    }
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
            f"--log-dir={logs}",
            "-m",
            module,
            str(spec_path),
        ]
        _log.info("starting %d rank(s) of %s, each with %d thread(s)", processes, module, threads)
        # A process group of its own, so that a signal to the step's group reaches torchrun once, through `stop`.
        agent = spawn(command, environment=environment, new_group=True, folder=spec_path.parent)
        deadline_s = time.monotonic() + start_timeout_s + (0.0 if nodes is None else node_timeout_s)
        oom_kills_before = count_oom_kills()
        never_started = False
        while agent.poll() is None and not stop_request.received and not never_started:
            time.sleep(_POLL_S)
            never_started = time.monotonic() > deadline_s and not any(failures.glob("started-*"))
        status = stop(agent, grace_s=_GRACE_S) if stop_request.received or never_started else agent.wait()
    if never_started:
        raise TemporaryFailure(
            f"none of the {processes} process(es) of {module} started within {start_timeout_s:.0f} s",
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
    first, report, explained = first_failure(failures), read_report(failures / REPORT_FILE), _failed_processes(failures)
    if status != 0 and first is None and free_bytes(failures.parent) < _REASON_BYTES:
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
        raise TemporaryFailure(f"torchrun ended with status {status}", hint=f"read the log above; {_RUN_AGAIN}")


def raise_if_preempted(failures: Path, stop_s: float | None) -> None:
    """Raise `Preempted` after a request to stop at `stop_s`, unless a rank had failed before it or for a reason that stays.

    What ranks record after the signal is its consequence. But a node that failed ends a job, and then all others are asked to stop.
    """
    earlier = first_failure(failures, before_s=stop_s)
    first = earlier or first_failure(failures)
    if isinstance(first, Preempted) or first is None or (earlier is None and isinstance(first, TemporaryFailure)):
        raise Preempted(first.message if first else "the step was asked to stop", hint=_RUN_AGAIN)


def record_start(folder: Path) -> None:
    """Record in `folder` that this rank has started."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"started-{os.environ.get('LOCAL_RANK', '0')}").touch()


def record_failure(folder: Path, error: BaseException) -> None:
    """Record why this rank failed: in `folder` for the launcher on this machine, and on stderr for the log."""
    redact = redactor()
    failure = Failure.of(error)
    if not isinstance(error, CelebditError):
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
    rank = os.environ.get("RANK", "0")
    facts = {**asdict(failure), "message": redact(failure.message), "at_s": time.time(), "rank": int(rank)}
    print(f"rank {rank}: {facts['message']}" + (f"\n  {failure.hint}" if failure.hint else ""), file=sys.stderr, flush=True)
    with suppress(OSError):  # on a full disk the launcher finds the reason itself
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"process-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(facts))


def first_failure(folder: Path, *, before_s: float | None = None) -> CelebditError | None:
    """Return the error of the rank that failed first, or None if none wrote one; with `before_s` none before that time.

    When one rank fails, others fail as a consequence: a rank that only lost another counts only if no rank has a reason of its own.
    """
    failures = _read_failures(folder)
    if before_s is not None:
        failures = [facts for facts in failures if facts["at_s"] < before_s]
    if not failures:
        return None
    first = min(failures, key=lambda facts: (facts["kind"] == RankLost.__name__, facts["at_s"]))
    message = f"rank {first['rank']}: {first['message']}"
    for kind in (RankLost, Preempted):
        if first["kind"] == kind.__name__:
            return kind(message, hint=first["hint"])
    return error_for_exit_code(first["exit_code"], message, hint=first["hint"])


def _read_failures(folder: Path) -> list[dict[str, Any]]:
    failures = []
    for path in sorted(folder.glob("process-*.json")):
        with suppress(ValueError):  # on a full disk it is empty
            failures.append(json.loads(path.read_text()))
    return failures


def _failed_processes(folder: Path) -> set[int]:
    """Return the processes of this machine that recorded why they failed."""
    return {int(path.stem.removeprefix("process-")) for path in folder.glob("process-*.json")}


def _thread_limits(threads: int) -> dict[str, str]:
    """Limit every numeric library of a process to `threads`, and let idle threads sleep, so that ranks do not compete for cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**{name: str(threads) for name in names}, "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


def _compiler_caches(work_dir: Path) -> dict[str, str]:
    """Return where torch keeps the kernels that it compiled: by default in folders below /tmp with names that other users can guess."""
    caches = work_dir / "compiled"
    return {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton")}


class SignalFlag:
    """Record SIGTERM, SIGINT and SIGHUP instead of ending, while the block runs in the main thread; an ignored SIGHUP stays ignored."""

    received = False
    received_s: float | None = None
    """When the first signal came, by the clock of `time.time`."""

    def __enter__(self) -> "SignalFlag":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._set) for number in numbers}
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.received_s is None:
            self.received_s = time.time()
        self.received = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
