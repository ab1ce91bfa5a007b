"""The memory that a plan says for a process on this CPU, beside the peak of one that trains."""

import sys

import pytest

from benchmarks.plan_calibration import calibrate

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize("setting", ["smoke", "demo training.batch_images=16"])
def test_the_planned_memory_of_a_process_is_within_a_quarter_of_its_peak(setting: str) -> None:
    memory = calibrate(setting.split(), with_time=False)
    assert 0.75 < memory["planned_over_peak"] < 1.25, memory
    assert memory["without_tensors_mb"] < memory["peak_mb"], "it trained"
