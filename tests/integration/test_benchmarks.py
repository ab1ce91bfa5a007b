"""Benchmarks that measure processes count all of them, and those that compare samplers run on real weights."""

import sys
import time

import pytest

from benchmarks.command_cost import measure, summary

DETACHED = """
import subprocess, sys
busy = "import time; began = time.process_time()\\nwhile time.process_time() < began + 0.5: pass"
subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
raise SystemExit(int(sys.argv[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there can a process adopt what others leave")
def test_the_cost_of_a_command_counts_the_process_that_it_leaves() -> None:
    began_s = time.process_time()
    took = measure([sys.executable, "-c", DETACHED, "0"])
    assert took["cpu_s"] > 0.5
    assert took["clock_s"] < took["cpu_s"] + 0.5, "the clock is that of the command"
    assert time.process_time() - began_s < 0.4
    with pytest.raises(SystemExit):
        measure([sys.executable, "-c", DETACHED, "3"])


def test_costs_are_compared_by_turns() -> None:
    now, before = ([{"clock_s": 1.0, "cpu_s": cpu_s} for cpu_s in runs] for runs in ((1.0, 9.0, 3.0), (2.0, 10.0, 4.0)))
    assert summary(now, before) == {"clock_s": 1.0, "cpu_s": 3.0, "clock_s_before": 1.0, "cpu_s_before": 4.0, "cpu_ratio": 0.75}
