"""What a command costs with every process that it starts, the embedded servers among them: clock and processor time.

Runs `celebdit ARGUMENTS` several times and prints one JSON line: medians. A process that outlives the command, like a server that it has
stopped, is waited for and counted; do not measure a command that leaves servers running. Linux only.

With `--than PYTHON`, the `celebdit` of another checkout's environment runs too, by turns, and its medians and the ratio of the processor
times are printed beside. On a machine that others use, compare the processor time.

    python -m benchmarks.command_cost [--repeat 5] [--than ../before/.venv/bin/python] -- demo --home /tmp/home
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def measure(command: Sequence[str]) -> dict[str, float]:
    """Run `command` and wait for it and for every process that it has started; return what they took together.

    Raises:
        SystemExit: with the output of the command, if it fails.
    """
    reading, writing = os.pipe()  # of its own: what the command and those that it leaves print is of any form
    with os.fdopen(reading) as result:
        counting = [sys.executable, "-P", __file__, "--count", str(writing), *command]
        process = subprocess.Popen(counting, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[writing])
        os.close(writing)
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(output.decode(errors="replace"))
        took: dict[str, float] = json.load(result)
    return took


def _count(command: Sequence[str], result: int) -> int:
    """Run `command` as the parent of all that it leaves, write what they took to the file descriptor `result`, and return its status."""
    os.set_inheritable(result, False)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    started_s = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    clock_s = time.perf_counter() - started_s
    with suppress(ChildProcessError):
        while True:
            os.wait()
    times = os.times()
    os.write(result, json.dumps({"clock_s": clock_s, "cpu_s": times.children_user + times.children_system}).encode())
    return status


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--than", type=Path, metavar="PYTHON")
    parser.add_argument("arguments", nargs="+")
    chosen = parser.parse_args()
    pythons = [Path(sys.executable), *([chosen.than] if chosen.than else [])]
    took: list[list[dict[str, float]]] = [[] for _ in pythons]
    for _ in range(chosen.repeat):
        for runs, python in zip(took, pythons, strict=True):
            runs.append(measure([str(python.absolute().with_name("celebdit")), *chosen.arguments]))
    print(json.dumps({"command": " ".join(chosen.arguments), **summary(*took)}))


def summary(now: Sequence[Mapping[str, float]], before: Sequence[Mapping[str, float]] = ()) -> dict[str, float]:
    """Return medians of runs, with those of runs `before` by turns beside them."""
    medians = {key: round(statistics.median(run[key] for run in now), 2) for key in now[0]}
    if before:
        medians |= {f"{key}_before": round(statistics.median(run[key] for run in before), 2) for key in before[0]}
        medians["cpu_ratio"] = round(statistics.median(new["cpu_s"] / old["cpu_s"] for new, old in zip(now, before, strict=True)), 2)
    return medians


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        raise SystemExit(_count(sys.argv[3:], int(sys.argv[2])))
    main()
