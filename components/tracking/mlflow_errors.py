"""Turns what MLflow's client raises into the project's errors: refused access, a refused request, or a server that is unavailable.

Promises: outside `translate_mlflow_errors` nobody meets an error of MLflow's client, whatever the server answers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from components.errors import BadInput, CelebditError, TrackingUnavailable, first_line
from components.system.failures import was_raised_in

_RETRY_HINT = "run it again when MLflow is back"
_TOO_LARGE = 413
_log = logging.getLogger(__name__)


class TrackingRefused(BadInput):
    """MLflow does not do what it is asked: an entity was deleted, a name or a value is not allowed, an upload is too large."""


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
        status = error.get_http_status_code()
        if status in (401, 403):
            raise BadInput(
                f"MLflow at {uri} refuses access",
                hint="check MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and the server's --allowed-hosts",
            ) from error
        if error.error_code == "TEMPORARILY_UNAVAILABLE" or status >= 500:
            raise TrackingUnavailable(f"MLflow at {uri} failed: {first_line(error)}", hint=_RETRY_HINT) from error
        hint = "raise the limit of the proxy before MLflow" if status == _TOO_LARGE else None
        raise TrackingRefused(f"MLflow at {uri} refuses: {first_line(error)}", hint=hint) from error
    except OSError as error:
        if error.filename is not None:
            raise  # of a file on this machine
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
