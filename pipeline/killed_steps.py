"""Report a step of this machine whose process a signal ended, and which could not report that itself.

Promises: the event says what a rank that is killed is reported with: the signal, and lack of memory only if the kernel counted it. Signals
that ask to stop are not reported: the step that gets one reports it.
"""

import signal
from collections.abc import Sequence
from contextlib import suppress

from components.process_settings import events_path
from components.runtime.agent_report import count_oom_kills, step_killed
from components.runtime.events import Events

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SHELL_ADDS = 128


class KilledSteps:
    """Compares the exit statuses of steps with what the kernel counts meanwhile."""

    def __init__(self) -> None:
        self._oom_kills = count_oom_kills()

    def report(self, command: Sequence[str], status: int) -> None:
        """Write the event of the step that kfp started with `command` if `status`, of it or of its shell, is that of a kill."""
        number = -status if status < 0 else status - _SHELL_ADDS
        if number <= 0 or number in _STOPS:
            return
        error = step_killed(number, oom_kills=count_oom_kills() - self._oom_kills)
        with suppress(OSError):  # a full disk takes no event
            Events(command[-1], events_path()).emit("failed", exit_code=error.exit_code, message=error.message, hint=error.hint)
