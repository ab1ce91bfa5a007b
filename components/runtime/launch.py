"""Run a worker module as several processes on this machine, with torchrun, and say why if it fails.

Promises: the error that comes out is that of the rank that failed first; a SIGTERM to this process reaches the workers and lets them save;
no worker outlives this process. What the workers compute is not known here.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from components.environment import WORK_DIR
from components.errors import CelebditError, Failure, Preempted, RankLost, TemporaryFailure, error_for_exit_code
from components.runtime.redact import redactor
from components.system.process import spawn, stop

FAILURES = "failures"
"""Folder beside the spec in which failing ranks say why."""
_GRACE_S = 25.0
_POLL_S = 0.1


def launch(module: str, spec_path: Path, *, work_dir: Path, processes: int, threads: int, standalone: bool = True) -> None:
    """Run `python -m module spec_path` as `processes` ranks and wait for them; they find what to do in the file at `spec_path`.

    The ranks use `work_dir` as this process does. What torchrun writes itself lies beside the spec, until the next launch.

    Unless `standalone`, this machine is one of several, and torchrun finds the others through the PET_ variables of the environment.

    Raises:
        CelebditError: what the first failing rank reported, or `Preempted` after SIGTERM.
    """
    failures = spec_path.parent / FAILURES
    logs = spec_path.parent / "torchrun"
    for folder in (failures, logs):
        shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(["--standalone"] if standalone else []),
        f"--nproc-per-node={processes}",
        "--max-restarts=0",
        f"--log-dir={logs}",
        "-m",
        module,
        str(spec_path),
    ]
    with SignalNote() as note:
        # A group of its own: a signal to the step's group must reach torchrun once, through `stop`, and not twice.
        agent = spawn(command, environment={**os.environ, **_thread_limits(threads), WORK_DIR: str(work_dir)}, new_group=True)
        while agent.poll() is None and not note.received:
            time.sleep(_POLL_S)
        status = stop(agent, grace_s=_GRACE_S) if note.received else agent.wait()
    first = first_failure(failures)
    if note.received and (first is None or isinstance(first, TemporaryFailure)):
        raise Preempted(first.message if first else "the step was asked to stop", hint="run it again: finished work is kept")
    silent = sorted(set(range(processes)) - _reporting(failures))
    if status != 0 and silent and (first is None or isinstance(first, RankLost)):
        raise TemporaryFailure(
            f"process(es) {', '.join(map(str, silent))} of {module} ended without a reason: killed, perhaps for lack of memory",
            hint="the log above names the signal (9: killed, by the kernel or by hand); run it again: finished work is kept",
        )
    if first is not None:
        raise first
    if status != 0:
        raise TemporaryFailure(f"torchrun ended with status {status}", hint="read the log above; run it again: finished work is kept")


def record_failure(folder: Path, error: BaseException) -> None:
    """Write down why this rank failed, in `folder` for the launcher on this machine, and on stderr for whoever reads the log."""
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

    When one rank fails, others fail in its wake: a rank that only lost another does not count while some rank has a reason of its own.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("process-*.json"))]
    if not found:
        return None
    first = min(found, key=lambda facts: (facts["kind"] == RankLost.__name__, facts["at_s"]))
    message = f"rank {first['rank']}: {first['message']}"
    for kind in (RankLost, Preempted):
        if first["kind"] == kind.__name__:
            return kind(message, hint=first["hint"])
    return error_for_exit_code(first["exit_code"], message, hint=first["hint"])


def _reporting(folder: Path) -> set[int]:
    """Return which processes of this machine wrote down why they failed."""
    return {int(path.stem.removeprefix("process-")) for path in folder.glob("process-*.json")}


def _thread_limits(threads: int) -> dict[str, str]:
    """Keep every numeric library of a process to `threads`, and let idle threads sleep: two ranks on two cores must not fight."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**{name: str(threads) for name in names}, "OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


class SignalNote:
    """Note SIGTERM and SIGINT instead of dying of them, while the block runs in the main thread."""

    received = False

    def __enter__(self) -> "SignalNote":
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
