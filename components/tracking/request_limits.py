"""How long MLflow's client waits for its server, and how often it tries: environment variables that it reads at each request."""

import os

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def set_default_limits(*, timeout_s: int, max_retries: int) -> None:
    """Set limits unless the environment has some; MLflow's own let one call to a dead server block for four minutes."""
    os.environ.setdefault(_TIMEOUT, str(timeout_s))
    os.environ.setdefault(_RETRIES, str(max_retries))


def limit_requests(*, timeout_s: int, max_retries: int) -> None:
    """Lower the limits of this process to at most these.

    A default is not enough where training waits: a process inherits what its parent had set for itself.
    """
    for name, most in ((_TIMEOUT, timeout_s), (_RETRIES, max_retries)):
        os.environ[name] = str(min(most, int(os.environ.get(name, most))))
