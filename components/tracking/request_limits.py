"""How long MLflow's client waits for its server, and how often it tries: environment variables that it reads at each request."""

import os

from components.errors import BadInput, shorten

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_MOST_DIGITS = 6


def set_default_limits(*, timeout_s: int, max_retries: int) -> None:
    """Set limits unless the environment has some; MLflow's own let one call to a dead server block for four minutes.

    Raises:
        BadInput: if the environment has one that is not a number, or allows a request no time.
    """
    for name, default in ((_TIMEOUT, timeout_s), (_RETRIES, max_retries)):
        os.environ[name] = str(_limit(name, default))


def limit_requests(*, timeout_s: int, max_retries: int) -> None:
    """Lower the limits of this process to at most these.

    A default is not enough where training waits: a process inherits what its parent had set for itself.
    """
    for name, limit in zip((_TIMEOUT, _RETRIES), lower_limits(timeout_s=timeout_s, max_retries=max_retries), strict=True):
        os.environ[name] = str(limit)


def lower_limits(*, timeout_s: int, max_retries: int) -> tuple[int, int]:
    """Return these limits, or those of the environment where they are lower.

    Raises:
        BadInput: if the environment has one that is not a number, or allows a request no time.
    """
    return min(timeout_s, _limit(_TIMEOUT, timeout_s)), min(max_retries, _limit(_RETRIES, max_retries))


def _limit(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    least = 1 if name == _TIMEOUT else 0
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < least:
        raise BadInput(
            f"environment variable {name} is {shorten(repr(text), max_characters=20)}, not a whole number from {least}",
            hint=f"unset it to get {default}",
        )
    return int(text)
