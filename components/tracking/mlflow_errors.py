"""Turns what MLflow's client raises into the project's errors: refused access, a refused request, or a server that is unavailable.

Promises: no error of MLflow's client leaves `translate_mlflow_errors`, whatever the server answers.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from components.errors import BadInput, CelebditError, TrackingRefused, TrackingUnavailable, first_line
from components.system.failures import os_failure, was_raised_in

_RETRY_HINT = "run it again when MLflow is back"
_STATUS_IN_TEXT = re.compile(r"failed with error code (\d{3}) != 200")
_TEMPORARY = (408, 425, 429)
_TOO_LARGE = 413
_DELETED = "must be in the 'active' state. Current state is deleted"
_log = logging.getLogger(__name__)


def _status(error: MlflowException) -> int:
    """Return the HTTP status of the answer; MLflow's client (3.17) keeps that of an answer without JSON in its text alone."""
    written = _STATUS_IN_TEXT.search(str(error))
    return int(written[1]) if written else int(error.get_http_status_code())


def _hint(status: int, text: str) -> str | None:
    """Return what to do about a request that was refused, where that is known."""
    if status == _TOO_LARGE:
        return "raise the limit of the proxy before MLflow"
    if _DELETED in text:
        return "it was deleted in MLflow: restore it with mlflow runs restore or mlflow experiments restore, then run it again"
    return None


@contextmanager
def translate_mlflow_errors(uri: str) -> Iterator[None]:
    """Run calls to the MLflow server at `uri`.

    Raises:
        BadInput: if the server refuses access, or is not MLflow. TrackingRefused: if it refuses the request.
        TrackingUnavailable: if it cannot be reached or fails.
    """
    try:
        yield
    except MlflowException as error:
        status = _status(error)
        if status in (401, 403):
            raise BadInput(
                f"MLflow at {uri} refuses access",
                hint="check MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and the server's --allowed-hosts",
            ) from error
        if error.error_code == "TEMPORARILY_UNAVAILABLE" or status >= 500 or status in _TEMPORARY:
            raise TrackingUnavailable(f"MLflow at {uri} failed: {first_line(error)}", hint=_RETRY_HINT) from error
        raise TrackingRefused(f"MLflow at {uri} refuses: {first_line(error)}", hint=_hint(status, str(error))) from error
    except OSError as error:
        if error.filename is not None:  # of a file on this machine, like a download for which there is no room
            raise os_failure(error) or error from error
        raise TrackingUnavailable(f"MLflow at {uri} cannot be reached: {first_line(error)}", hint=_RETRY_HINT) from error
    except CelebditError:
        raise
    except Exception as error:
        if not was_raised_in(error, "mlflow", "google", "requests", "urllib3"):
            raise
        _log.debug("MLflow's client cannot read an answer", exc_info=error)
        raise BadInput(
            f"{uri} does not answer as MLflow does: {type(error).__name__}",
            hint="check MLFLOW_TRACKING_URI, and any proxy before the server",
        ) from error
