"""Trace a few training steps with torch's profiler.

Promises: warm-up steps come first, a process traces once, and profiling costs nothing unless it is enabled.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_WARM_STEPS = 3


class StepProfiler:
    """Traces `num_steps` steps after a few warm-up steps, and calls `on_trace` with a function that writes the trace to a file."""

    def __init__(self, num_steps: int, on_trace: Callable[[Callable[[Path], None]], None]) -> None:
        self._num_steps = num_steps
        self._on_trace = on_trace
        self._num_steps_done = 0
        self._profile: profile | None = None

    def step_done(self) -> None:
        """Count one finished training step."""
        if self._num_steps == 0:
            return
        self._num_steps_done += 1
        if self._num_steps_done == _WARM_STEPS:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.__enter__()
        elif self._profile is not None and self._num_steps_done == _WARM_STEPS + self._num_steps:
            self.close()

    def close(self) -> None:
        """End the trace, if one is running, and pass it to `on_trace`; a run that ends early has a short one."""
        finished, self._profile = self._profile, None
        if finished is not None:
            finished.__exit__(None, None, None)
            self._on_trace(lambda path: finished.export_chrome_trace(str(path)))
