"""Settings that a process needs before its `Settings` are checked, or without them: where it reports, how much it logs, what it ends with.

Promises: each function reads one variable of the environment; only `log_level` and `server_token` refuse a value.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from components.environment import EVENTS, LAST_WORDS, LIFELINE, LOG_LEVEL, SERVER_TOKEN
from components.errors import BadInput, shorten

_LOG_LEVELS = {name: logging.getLevelNamesMapping()[name] for name in ("DEBUG", "INFO", "WARNING", "ERROR")}


def events_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file for this process's events, or None for stderr; known before the other settings are checked."""
    path = (os.environ if environ is None else environ).get(EVENTS)
    return Path(path) if path else None


def lifeline_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the lifeline of the run that this process belongs to, or None if it has none, as on Kubernetes."""
    path = (os.environ if environ is None else environ).get(LIFELINE)
    return Path(path) if path else None


def termination_message_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return the file from which Kubernetes takes the reason of a container's failure."""
    return Path((os.environ if environ is None else environ).get(LAST_WORDS) or "/dev/termination-log")


def step_log_level() -> str | None:
    """Return the level to log at in the steps of a submitted pipeline, or None to leave them at their own, INFO."""
    level = log_level()
    return None if level in (None, logging.INFO) else logging.getLevelName(level)


def log_level(environ: Mapping[str, str] | None = None) -> int | None:
    """Return the least level of the records to log, or None if it is not set.

    Raises:
        BadInput: if it is not the name of a level.
    """
    name = (os.environ if environ is None else environ).get(LOG_LEVEL, "").strip().upper()
    if not name:
        return None
    if name not in _LOG_LEVELS:
        raise BadInput(f"{LOG_LEVEL} is {shorten(repr(name), max_characters=20)}", hint=f"set it to one of {', '.join(_LOG_LEVELS)}")
    return _LOG_LEVELS[name]


def server_token(environ: Mapping[str, str] | None = None) -> str:
    """Return the token that the embedded MLflow server asks for, in the process of that server.

    Raises:
        BadInput: if it is not set.
    """
    token = (os.environ if environ is None else environ).get(SERVER_TOKEN, "").strip()
    if not token:
        raise BadInput(f"environment variable {SERVER_TOKEN} is not set", hint="it is the token of the embedded MLflow server")
    return token
