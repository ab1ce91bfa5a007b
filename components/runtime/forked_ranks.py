"""The ranks of one machine without a GPU, forked from a process that has imported once what they all need.

torchrun starts an interpreter per rank, and each imports torch again, and torch's compiler with the first optimiser. Promises: a rank runs
its module as `python -m` does, in a session of its own, with the environment, the folder and the import path of this process and the
place that torchrun would give it; nothing listens. When one rank has failed, the others are asked to stop and then ended, and only those
that ended before are reported.
"""

import gc
import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.context import ForkProcess

import torch

from components.system.process_name import show_command
from components.system.python_process import python_command

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_POLL_S = 0.1


def can_fork() -> bool:
    """Return whether ranks can be forked here: CUDA does not survive a fork, and a lock that a thread holds is never released after it."""
    return sys.platform.startswith("linux") and not torch.cuda.is_available() and threading.active_count() == 1


def preload(module: str) -> None:
    """Import what the ranks of one of our modules need, and what it names as imported later."""
    if module.startswith("components."):
        for name in getattr(importlib.import_module(module), "IMPORTED_LATER", ()):
            importlib.import_module(name)


class Stopped(Exception):
    """The process was asked to stop, and its ranks with it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


def run_forked(module: str, arguments: Sequence[str], *, processes: int, grace_s: float) -> dict[int, int]:
    """Run `module` with `arguments` as so many ranks; return the exit status, negative for a signal, of each that failed by itself.

    Raises:
        Stopped: after a signal to this process, once its ranks have ended, which have `grace_s` seconds for it.
        OSError: if a rank cannot be forked, once the others have ended.
    """
    received: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    gc.freeze()  # a collection in a rank would copy all pages
    assert threading.active_count() == 1, "no thread may hold a lock where a process is forked"
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_be_rank, args=(module, arguments, rank, processes)) for rank in range(processes)]
    try:
        for rank in ranks:
            rank.start()
        while not received and not (exits := _failed_exits(ranks)) and any(rank.exitcode is None for rank in ranks):
            connection.wait([rank.sentinel for rank in ranks if rank.exitcode is None], timeout=_POLL_S)
    finally:
        _end([rank for rank in ranks if rank.pid is not None], grace_s)  # not those that could not be forked
    if received:
        raise Stopped(received[0])
    return exits


def _failed_exits(ranks: Sequence[ForkProcess]) -> dict[int, int]:
    return {number: rank.exitcode for number, rank in enumerate(ranks) if rank.exitcode}


def _end(ranks: Sequence[ForkProcess], grace_s: float) -> None:
    """Ask the ranks that are left to stop, and end those that have not after `grace_s`."""
    for rank in ranks:
        if rank.exitcode is None:
            rank.terminate()
    deadline_s = time.monotonic() + grace_s
    for rank in ranks:
        rank.join(max(deadline_s - time.monotonic(), 0))
    for rank in ranks:
        if rank.exitcode is None:
            rank.kill()
            rank.join()


def _be_rank(module: str, arguments: Sequence[str], rank: int, processes: int) -> None:
    os.setsid()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    show_command(python_command(module, *arguments))
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]  # as with -u
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # it is run as the program of this process
    runpy.run_module(module, run_name="__main__", alter_sys=True)
