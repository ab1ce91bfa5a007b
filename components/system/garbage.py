"""Python's search for reference cycles, in a process that runs one step: each search walks through all objects of all imported modules.

In the pods of preflight, gate and finalize this was a third of the processor time (`benchmarks/step_start.py`). Objects without cycles are
freed at once as ever. Local runs import once and fork each step; what was imported is frozen there before.
"""

import atexit
import gc

_THRESHOLDS = (10_000, 50, 10)
"""Python's are 700, 10 and 10: objects made since the last search, and searches of one generation before one of the next."""


def search_seldom() -> None:
    """Search after more new objects, for a step whose process holds no tensors: a cycle would keep them longer."""
    gc.set_threshold(*_THRESHOLDS)


def end_without_search() -> None:
    """Leave out the searches at the end of the process; files and temporary folders are closed by then."""
    atexit.register(gc.freeze)
