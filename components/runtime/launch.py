"""Run a worker module as several ranks on this machine, with torchrun, and raise the reason if it fails.

Promises: the error that is raised is that of the rank that failed first; a SIGTERM to this process reaches the ranks and lets them save;
no rank outlives this process. The ranks of one machine meet through files in a folder that only this user can open: nothing listens beyond
the loopback interface, and neither the machine's hostname nor the environment decides where they meet.
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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from components.environment import RENDEZVOUS, WORK_DIR
from components.errors import CelebditError, Failure, Preempted, RankLost, TemporaryFailure, error_for_exit_code
from components.runtime.redact import redactor
from components.system.child_environment import child_environment
from components.system.process import spawn, stop
from components.system.python_process import python_command

FAILURES = "failures"
"""Folder beside the spec in which ranks record that they started, and why they failed."""
_START_TIMEOUT_S = 300.0
_GRACE_S = 25.0
_POLL_S = 0.1
_log = logging.getLogger(__name__)
_TORCHRUN_PREFIXES = ("PET_", "TORCHELASTIC_", "MASTER_", "GLOO_")
_TORCHRUN_NAMES = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "ROLE_NAME",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_WORLD_SIZE",
        "ROLE_WORLD_SIZE",
        "NCCL_COMM_ID",
    }
)


def launch(
    module: str,
    spec_path: Path,
    *,
    work_dir: Path,
    processes: int,
    threads: int,
    standalone: bool = True,
    start_timeout_s: float = _START_TIMEOUT_S,
) -> None:
    """Run `python -m module spec_path` as `processes` ranks and wait for them; they read their job from the file at `spec_path`.

    The ranks use `work_dir` as this process does, get of its environment what ranks need, and run in the folder of the spec. What torchrun
    writes itself lies beside the spec, until the next launch.

    Unless `standalone`, this machine is one of several, and torchrun finds the others through the PET_ variables of the environment. On
    one machine, ranks of which none has started after `start_timeout_s` are ended.

    Raises:
        CelebditError: what the first failing rank reported, `Preempted` after SIGTERM, or `TemporaryFailure` if no rank started.
    """
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
    with SignalFlag() as stop_request, tempfile.TemporaryDirectory(prefix="rendezvous-", dir=spec_path.parent) as rendezvous:
        options: list[str] = []
        if standalone:
            options, environment = _single_machine_rendezvous(Path(rendezvous), environment)
        command = [
            *python_command("torch.distributed.run"),
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
        deadline_s = time.monotonic() + start_timeout_s
        never_started = False
        while agent.poll() is None and not stop_request.received and not never_started:
            time.sleep(_POLL_S)
            never_started = standalone and time.monotonic() > deadline_s and not any(failures.glob("started-*"))
        status = stop(agent, grace_s=_GRACE_S) if stop_request.received or never_started else agent.wait()
    if never_started:
        raise TemporaryFailure(
            f"none of the {processes} process(es) of {module} started within {start_timeout_s:.0f} s",
            hint="read the log above; run it again, and look for a full or very slow disk if it happens again",
        )
    first = first_failure(failures)
    if stop_request.received and (first is None or isinstance(first, TemporaryFailure)):
        raise Preempted(first.message if first else "the step was asked to stop", hint="run it again: finished work is kept")
    unreported = sorted(set(range(processes)) - _failed_processes(failures))
    if status != 0 and unreported and (first is None or isinstance(first, RankLost)):
        raise TemporaryFailure(
            f"process(es) {', '.join(map(str, unreported))} of {module} ended without a reason: killed, perhaps for lack of memory",
            hint="the log above names the signal (9: killed, by the kernel or by hand); run it again: finished work is kept",
        )
    if first is not None:
        raise first
    if status != 0:
        raise TemporaryFailure(f"torchrun ended with status {status}", hint="read the log above; run it again: finished work is kept")


def _single_machine_rendezvous(folder: Path, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return torchrun's options and the environment with which the ranks of one machine meet through files in `folder`.

    `torchrun --standalone` opens two TCP stores on all interfaces and unpickles what others write into them, and it waits for the machine's
    own hostname to resolve (torch 2.15). A file store in a folder of mode 0700 does neither. Torchrun reads an option that is not given
    from a PET_ variable, so those of the surroundings (a notebook inside a TrainJob has some) are dropped.
    """
    options = [
        "--nnodes=1",
        "--node-rank=0",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={folder / 'agent'}",
        "--rdzv-conf=store_type=file",
        "--rdzv-id=celebdit",
        "--local-addr=127.0.0.1",
    ]
    kept = {name: value for name, value in environment.items() if not name.startswith(_TORCHRUN_PREFIXES) and name not in _TORCHRUN_NAMES}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return options, {
        **kept,
        RENDEZVOUS: str(folder / "ranks"),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else the agent opens a TCP store for its ranks all the same
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"process-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(facts))


def first_failure(folder: Path) -> CelebditError | None:
    """Return the error of the rank that failed first, or None if none wrote one.

    When one rank fails, others fail as a consequence: a rank that only lost another counts only if no rank has a reason of its own.
    """
    failures = [json.loads(path.read_text()) for path in sorted(folder.glob("process-*.json"))]
    if not failures:
        return None
    first = min(failures, key=lambda facts: (facts["kind"] == RankLost.__name__, facts["at_s"]))
    message = f"rank {first['rank']}: {first['message']}"
    for kind in (RankLost, Preempted):
        if first["kind"] == kind.__name__:
            return kind(message, hint=first["hint"])
    return error_for_exit_code(first["exit_code"], message, hint=first["hint"])


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
    """Record SIGTERM and SIGINT instead of ending, while the block runs in the main thread."""

    received = False

    def __enter__(self) -> "SignalFlag":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = {number: signal.signal(number, self._set) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
