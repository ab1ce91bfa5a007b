"""torchrun's agent of one machine: `python -m components.runtime.agent REPORT torch.distributed.run OPTIONS...`.

Runs torchrun with OPTIONS, or forks the ranks itself on one machine without a GPU (`forked_ranks.py`), and writes to the file REPORT what
only this process knows: how each process ended that was not stopped by it, or why it could start none. A node other than the first waits
here until the first one listens, because torchrun's own connection waits twice its limit and does not say why (torch 2.15). The launcher
reads the report; see `agent_report.py`.
"""

import argparse
import signal
import socket
import sys
import time
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from components.runtime.agent_report import AgentReport, RankExit, write_report
from components.runtime.forked_ranks import Stopped, can_fork, preload, run_forked

_CONNECT_TIMEOUT_S = 5.0
_PAUSE_S = 0.5


def main() -> None:
    """Run torchrun and leave with status 0, or 1 after writing the report."""
    report, options = Path(sys.argv[1]), torchrun.parse_args(sys.argv[3:])
    if options.nnodes == "1":
        preload(options.training_script)
        if can_fork():
            sys.exit(_fork(report, options))
    stopped = _note_stopped()
    try:
        _wait_for_first_node(options)
        torchrun.run(options)
    except ChildFailedError as error:
        failures = {rank: failure for rank, failure in error.failures.items() if failure.pid not in stopped}
        exits = tuple(RankExit(rank, failure.local_rank, failure.exitcode) for rank, failure in failures.items())
        write_report(report, AgentReport(exits=exits))
        print(error, file=sys.stderr, flush=True)
        sys.exit(1)
    except SignalException as error:  # the launcher asked it to stop, and knows why
        sys.exit(128 + error.sigval)
    except Exception as error:
        write_report(report, AgentReport(error=str(error)))
        raise


def _fork(report: Path, options: argparse.Namespace) -> int:
    """Fork the ranks; return the status of this process after writing the report."""
    module, arguments = options.training_script, options.training_script_args
    try:
        exits = run_forked(module, arguments, processes=int(options.nproc_per_node), grace_s=float(options.shutdown_timeout))
    except Stopped as error:  # the launcher asked it to stop, and knows why
        return 128 + error.number
    except OSError as error:
        write_report(report, AgentReport(error=str(error)))
        raise
    if exits:
        write_report(report, AgentReport(exits=tuple(RankExit(rank, rank, status) for rank, status in exits.items())))
    return 1 if exits else 0


def _note_stopped() -> set[int]:
    """Return a set that gets the ids of the processes that torchrun stops, which it counts as failed too (torch 2.15)."""
    stopped: set[int] = set()
    close = SubprocessHandler.close

    def close_and_note(handler: SubprocessHandler, death_sig: signal.Signals | None = None) -> None:
        stopped.add(handler.proc.pid)
        close(handler, death_sig)

    SubprocessHandler.close = close_and_note  # type: ignore[assignment, method-assign]
    return stopped


def _wait_for_first_node(options: argparse.Namespace) -> None:
    """Return once the first node accepts connections, immediately on that node and on a single machine.

    Raises:
        ConnectionError: if it does not within the timeout of the rendezvous.
    """
    if options.rdzv_backend != "static" or options.node_rank == 0:
        return
    settings = dict(entry.split("=", 1) for entry in options.rdzv_conf.split(","))
    timeout_s = float(settings["timeout"])
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((options.master_addr, options.master_port), timeout=_CONNECT_TIMEOUT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                place = f"{options.master_addr}:{options.master_port}"
                raise ConnectionError(
                    f"node 0 accepted no connection at {place} within {timeout_s:.0f} s ({error.strerror or error})"
                ) from error
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
