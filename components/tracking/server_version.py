"""The version of the MLflow server, and the oldest one that has all the calls of the steps. Imports MLflow only when it is called."""

import re

from components.errors import BadInput
from components.tracking.request_limits import lower_limits

OLDEST_MLFLOW = (3, 0)
"""The first version with logged models; docs/kubernetes.md and requirements/oldest-mlflow.in name it too."""
_TIMEOUT_S, _MAX_RETRIES = 10, 1
"""Of the first request to a server: MLflow's client (3.17) would try one that is stopped for four minutes, and a silent one longer."""


def check_server_version(uri: str) -> str | None:
    """Return the version of the MLflow server at `uri`, or None if it does not say it, as behind some proxies.

    Raises:
        BadInput: if it is too old. TrackingUnavailable: if it cannot be reached, within seconds.
    """
    version = _server_version(uri)
    numbers = re.match(r"(\d+)\.(\d+)", version or "")
    if numbers is None:
        return None
    if (int(numbers[1]), int(numbers[2])) < OLDEST_MLFLOW:
        oldest = ".".join(map(str, OLDEST_MLFLOW))
        raise BadInput(
            f"MLflow at {uri} is version {version}, the oldest that is supported is {oldest}: it has no logged models",
            hint=f"upgrade the server to {oldest} or newer (docs/kubernetes.md), or use another one: MLFLOW_TRACKING_URI",
        )
    return version


def _server_version(uri: str) -> str | None:
    """Return the server's answer to a request for its version, if it is one."""
    from mlflow.utils.credentials import get_default_host_creds  # noqa: PLC0415 - takes seconds
    from mlflow.utils.rest_utils import http_request  # noqa: PLC0415

    from components.tracking.mlflow_errors import translate_mlflow_errors  # noqa: PLC0415

    timeout_s, max_retries = lower_limits(timeout_s=_TIMEOUT_S, max_retries=_MAX_RETRIES)
    with translate_mlflow_errors(uri):
        limits = {"max_retries": max_retries, "timeout": timeout_s, "respect_retry_after_header": False}
        answer = http_request(get_default_host_creds(uri), "/version", "GET", raise_on_status=False, **limits)
    text = answer.text.strip() if answer.status_code == 200 else ""
    return text if re.fullmatch(r"\d+\.\d+[\w.+-]{0,40}", text) else None
