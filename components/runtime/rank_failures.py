"""Why ranks failed: each rank records its reason in a folder, and the launcher on the same machine finds the first one.

Promises: a consequence, such as a lost rank, never hides its cause; secrets are redacted before they are written.
"""

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.errors import CelebditError, Failure, Preempted, RankLost, TemporaryFailure, error_for_exit_code
from components.runtime.redact import redactor

FAILURES = "failures"
"""Folder beside the spec in which ranks record that they started, and why they failed."""
RUN_AGAIN = "run it again: finished work is kept"


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


def failed_processes(folder: Path) -> set[int]:
    """Return the processes of this machine that recorded why they failed."""
    return {int(path.stem.removeprefix("process-")) for path in folder.glob("process-*.json")}


def raise_if_preempted(failures: Path, stop_s: float | None) -> None:
    """Raise `Preempted` after a request to stop at `stop_s`, unless a rank had failed before it or for a reason that stays.

    What ranks record after the signal is its consequence. But a node that failed ends a job, and then all others are asked to stop.
    """
    earlier = first_failure(failures, before_s=stop_s)
    first = earlier or first_failure(failures)
    if isinstance(first, Preempted) or first is None or (earlier is None and isinstance(first, TemporaryFailure)):
        raise Preempted(first.message if first else "the step was asked to stop", hint=RUN_AGAIN)
