"""Child processes that end with their parent.

Promises: a child started by `spawn` is killed by the kernel when its parent dies (Linux); `stop` sends SIGTERM first
and SIGKILL after a grace period.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to send `signal_number` to this process when its parent ends; does nothing outside Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal_number))
    if os.getppid() != parent:  # it ended before the request was in place
        os.kill(os.getpid(), signal_number)


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] | None = None,
    new_group: bool = False,
    folder: Path | None = None,
    descriptors: Collection[int] = (),
    death_signal: int | None = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start `command`; with `new_group` it leads a process group of its own, so that it can be stopped with all its children.

    It runs in `folder`, by default in that of this process, and inherits the open `descriptors` under the same numbers. It gets
    `death_signal` when this process ends; with None it keeps running.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment) if environment is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout is not None else None,
        start_new_session=new_group,
        pass_fds=tuple(descriptors),
        # The only way to set a death signal; it touches no lock.
        preexec_fn=None if death_signal is None else lambda: die_with_parent(death_signal),  # noqa: PLW1509
    )


def stop(process: "subprocess.Popen[bytes]", *, grace_s: float) -> int:
    """End the group that `process` leads: SIGTERM to all, SIGKILL to those left after `grace_s`; return the leader's exit status."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while time.monotonic() < deadline_s and (process.poll() is None or group_members(process.pid)):
        time.sleep(0.05)
    _signal_group(process.pid, signal.SIGKILL)
    return process.wait()


def signal_from_outside(process: "subprocess.Popen[bytes]", *, wait_s: float) -> str | None:
    """Return the name of the signal by which the system or a person ended `process`, or None if it runs or ended by itself.

    Waits so long for a process that has closed its pipes and is about to end. A crash is no signal from outside: it may come from the data
    that the process read, and comes again.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)
    code = process.returncode
    return signal.Signals(-code).name if code is not None and -code in _KILLS else None


def group_members(group: int) -> list[int]:
    """Return the ids of the living processes of a process group."""
    import psutil  # noqa: PLC0415 - needed only to stop a group, and a tenth of a decoder's start-up time

    members = []
    for process in psutil.process_iter(["pid", "status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.info["pid"]) == group:
                members.append(int(process.info["pid"]))
    return members


def _signal_group(group: int, signal_number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)
