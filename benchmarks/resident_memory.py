"""Resident memory of this process, from Linux."""

from pathlib import Path
from typing import Literal


def resident_bytes(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Return the resident memory now (VmRSS) or at its peak (VmHWM).

    Unlike that of `getrusage`, the peak is of this program, not of what was forked to start it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
