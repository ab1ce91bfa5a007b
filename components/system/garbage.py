"""Python's search for reference cycles, in a process that runs one step: each search walks through all objects of all imported modules.

In the pods of preflight, gate and finalize this was a third of the processor time (`benchmarks/step_start.py`). Objects without cycles are
freed at once as ever. Local runs import once and fork each step; what was imported is frozen there before.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_USUAL_THRESHOLDS = gc.get_threshold()
_THRESHOLDS = (10_000, 50, 10)
"""Objects made since the last search, and searches of one generation before one of the next."""


def search_seldom() -> None:
    """Search after more new objects, for a step whose process holds no tensors: a cycle would keep them longer."""
    gc.set_threshold(*_THRESHOLDS)


def search_as_usual() -> None:
    """Search as often as Python does by default, for a step that begins to hold tensors."""
    gc.set_threshold(*_USUAL_THRESHOLDS)


@contextmanager
def import_without_search() -> Iterator[None]:
    """Import modules in the block without a search, and leave what exists after it out of all searches: modules are not freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def end_without_search() -> None:
    """Leave out the searches at the end of the process; files and temporary folders are closed by then."""
    atexit.register(gc.freeze)
