"""The command line that a forked process shows in a list of processes, in place of that of the process it was forked from.

Promises: best effort, on Linux alone; a command line that is longer than the old one is cut; nothing else changes.
"""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_ARGUMENTS_START, _ARGUMENTS_END = 47, 48
"""Places of `arg_start` and `arg_end` in /proc/PID/stat, counted from 0; see proc(5)."""
_MARK_BYTES = 2


def show_command(command: Sequence[str]) -> None:
    """Let lists of processes show `command` for this process."""
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_text()
        fields = ["", "", *stat[stat.rindex(")") + 2 :].split()]  # the name, which may have blanks, is the second field
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        size = end - start
        if start and size > _MARK_BYTES:
            text = " ".join(command).encode(errors="surrogateescape")[: size - _MARK_BYTES]
            # A last byte other than 0 tells the kernel that the text at the start counts, up to its 0, as with setproctitle(3).
            ctypes.memmove(start, text.ljust(size - 1, b"\0") + b" ", size)
