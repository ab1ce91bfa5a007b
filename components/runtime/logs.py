"""Configures Python's logging for a step, a rank, a node or a command.

Promises: every record is one line on stderr with its time, level and logger; secrets are masked; loggers of other packages stay at
WARNING; stdout is left to `--json`. Nothing is configured when this module is imported. Progress and results are events, see `events.py`.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from components.runtime.events import LOGGER, Events
from components.runtime.redact import redactor

_OURS = (LOGGER, "components", "model", "pipeline")
_CONFIGURES_ITSELF = ("mlflow",)
"""Packages that give their logger a level and a handler of its own when they are imported."""
_REPEAT_S = 30.0


def configure_logging(level: int, *, role: str | None = None, events: Events | None = None, terminal: bool = False) -> None:
    """Log from now on as this process should; a second call replaces the first.

    `role` names the process where several share a log. `events` receives warnings too, because people watch these and not the log. On a
    `terminal`, lines of a step or a command have no time, and repeated retries are shown every half minute.
    """
    # Else MLflow installs a handler of its own when it is imported, at level INFO and without masking (3.17).
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    root = logging.getLogger()
    for handler in list(root.handlers):
        # KFP's executor, in which a step runs, has configured one by `basicConfig`: it would repeat each record, unmasked.
        if isinstance(handler, _StderrHandler | _EventHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _CONFIGURES_ITSELF:
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.handlers.clear()
        logger.propagate = True
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    handlers: list[logging.Handler] = [_StderrHandler()]
    handlers[0].setFormatter(_TerminalFormatter() if terminal else _LogFormatter(role))
    if events is not None:
        handlers.append(_EventHandler(events))
    for handler in handlers:
        if isinstance(handler, _EventHandler) or (terminal and level >= logging.WARNING):
            handler.addFilter(RepeatFilter())
        handler.addFilter(RedactingFilter())
        root.addHandler(handler)
    if terminal:
        logging.getLogger(LOGGER).setLevel(min(level, logging.INFO))


class RedactingFilter(logging.Filter):
    """Masks the secrets of the environment in every record, tracebacks included, and puts its message on one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        redact = redactor()  # created for each record, because a command learns the secrets of its embedded servers while it runs
        record.msg, record.args = one_line(redact(record.getMessage())), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        return True


class RepeatFilter(logging.Filter):
    """Passes one record in half a minute of those that carry the same `topic`, as retries of one call do."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        topic = getattr(record, "topic", None)
        if topic is None:
            return True
        if self._clock() - self._passed_s.get(topic, -_REPEAT_S) < _REPEAT_S:
            return False
        self._passed_s[topic] = self._clock()
        return True


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment, so that progress bars can draw around the line."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _EventHandler(logging.Handler):
    """Turns our warnings into notes of a step, except those that the step noted itself (`is_noted`)."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in _OURS and not hasattr(record, "is_noted"):
            try:
                self._events.note(record.getMessage())
            except OSError:
                self.handleError(record)


class _LogFormatter(logging.Formatter):
    """Time, level, role, logger and message, on one line."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, role: str | None = None) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {f'{role} ' if role else ''}%(name)s: %(message)s")
        self.converter = time.gmtime


class _TerminalFormatter(_LogFormatter):
    """The same with the local time of day, but lines of a step or a command are shown as `[step] text`."""

    default_time_format = "%H:%M:%S"
    default_msec_format = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.localtime

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno == logging.INFO and record.name.split(".")[0] == LOGGER:
            return f"[{record.name.removeprefix(f'{LOGGER}.')}] {record.getMessage()}"
        return super().format(record)


def one_line(text: str) -> str:
    """Return `text` on one line, without characters that could forge a record or drive a terminal."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.splitlines()))
