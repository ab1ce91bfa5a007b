"""Look at processes that may end at any moment."""

import psutil


def command_line(process: psutil.Process) -> list[str]:
    """Return the command line; it is empty if the process has ended, also if nobody has waited for it yet."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def processes_below(parent: int, *, running: str = "") -> list[psutil.Process]:
    """Return all descendants of the process `parent`, those alone with `running` on their command line if it is given."""
    try:
        below = psutil.Process(parent).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if not running or running in " ".join(command_line(process))]
