"""Turns what MLflow's client raises into the project's errors: refused access, or a server that is unavailable."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from components.errors import BadInput, TrackingUnavailable, first_line

_RETRY_HINT = "run it again when MLflow is back"


@contextmanager
def translate_mlflow_errors(uri: str) -> Iterator[None]:
    """Run calls to the MLflow server at `uri`; errors that are neither refused access nor an outage pass unchanged.

    Raises:
        BadInput: if the server refuses access. TrackingUnavailable: if it cannot be reached or fails.
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
        raise
    except OSError as error:
        raise TrackingUnavailable(f"MLflow at {uri} cannot be reached: {first_line(error)}", hint=_RETRY_HINT) from error
