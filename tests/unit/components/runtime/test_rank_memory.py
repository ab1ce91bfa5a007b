"""The memory of ranks: what a training step frees is kept for the next one."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from components.runtime.launch import rank_environment

_STEPS = """
import resource

def step():
    return [bytearray(2**20) for _ in range(16)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(environment: dict[str, str]) -> int:
    """Return the page faults of ten steps that use 16 MiB each."""
    done = subprocess.run([sys.executable, "-c", _STEPS], capture_output=True, text=True, check=True, env=environment, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_a_step_is_not_returned_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    environment = rank_environment(tmp_path, threads=1)
    by_default = {name: value for name, value in environment.items() if not name.startswith("MALLOC_")}
    assert page_faults(by_default) > 1000
    assert page_faults(environment) < 100


def test_settings_of_the_user_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    environment = rank_environment(tmp_path, threads=3)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "131072"
    assert environment["OMP_NUM_THREADS"] == "3"
