"""The memory of ranks: what a training step frees is kept for the next one, and lies in large pages where Linux gives them."""

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

_LARGE_PAGES = """
from pathlib import Path

tensors = [bytearray(b"x" * 2**20) for _ in range(32)]
(line,) = (line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("AnonHugePages"))
print(int(line.split()[1]) * 1024)
"""
_OF_THE_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def page_faults(environment: dict[str, str]) -> int:
    """Return the page faults of ten steps that use 16 MiB each."""
    return number_printed_by(_STEPS, environment)


def number_printed_by(script: str, environment: dict[str, str]) -> int:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment, timeout=60)
    return int(done.stdout)


def has_glibc(*version: int) -> bool:
    library, release = platform.libc_ver()
    return library == "glibc" and tuple(map(int, release.split("."))) >= version


def gives_large_pages_on_request() -> bool:
    return _OF_THE_SYSTEM.exists() and "[madvise]" in _OF_THE_SYSTEM.read_text() and Path("/proc/self/smaps_rollup").exists()


@pytest.mark.skipif(not has_glibc(2), reason="the C library is not glibc")
def test_memory_of_a_step_is_not_returned_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        monkeypatch.delenv(name, raising=False)
    # A large page is one fault.
    environment = {**rank_environment(tmp_path, threads=1), "GLIBC_TUNABLES": ""}
    by_default = {name: value for name, value in environment.items() if not name.startswith("MALLOC_")}
    assert page_faults(by_default) > 1000
    assert page_faults(environment) < 100


@pytest.mark.skipif(not has_glibc(2, 35), reason="the C library asks for no large pages")
@pytest.mark.skipif(not gives_large_pages_on_request(), reason="Linux gives large pages always or never")
def test_memory_of_a_rank_lies_in_large_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    environment = rank_environment(tmp_path, threads=1)
    by_default = {name: value for name, value in environment.items() if name != "GLIBC_TUNABLES"}
    assert number_printed_by(_LARGE_PAGES, by_default) == 0
    # Memory can be too fragmented for some.
    assert number_printed_by(_LARGE_PAGES, environment) >= 8 * 2**20


def test_settings_of_the_user_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    environment = rank_environment(tmp_path, threads=3)
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "131072"
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"
    assert environment["OMP_NUM_THREADS"] == "3"
