"""Start a command below a guardian, and stop it: the side of the process that the command works for.

Promises: the command and all that it starts end when `stop` returns, when the command ends, or soon after this process is gone.
"""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from components.environment import LIFELINE
from components.system.guardian import STOP_S
from components.system.lifeline import end_processes_of
from components.system.python_process import python_command

_MARGIN_S = 10.0


class Guarded:
    """A command that runs below a guardian."""

    def __init__(
        self, command: Sequence[str], *, lifeline: Path, environment: Mapping[str, str], output: IO[bytes], folder: Path | None = None
    ) -> None:
        """Start `command` in `folder`, with `output` for what it prints; every process below it has `lifeline` in its environment."""
        self._lifeline = lifeline
        self._process = subprocess.Popen(
            python_command("components.system.guardian", str(lifeline), *command),
            env={**environment, LIFELINE: str(lifeline)},
            stdin=subprocess.PIPE,  # ends with this process
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """Return the exit status of the command if it has ended with all that it started, else None."""
        status = self._process.poll()
        if status is not None:
            self._end()
        return status

    def stop(self) -> None:
        """Ask the command to stop, give it time to save, and end what is left; an interruption shortens the time."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(STOP_S + _MARGIN_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._end()

    def _end(self) -> None:
        """End the guardian by its pipe, or by force, and what it left if it was killed itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_MARGIN_S * 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode < 0:
            end_processes_of(self._lifeline)
