"""Turns what MLflow's client raises into the project's errors: refused access, a refused request, or a server that is unavailable.

Promises: no error of MLflow's client leaves `translate_mlflow_errors`, whatever the server answers. Which right a request lacks is in
`mlflow_rights.py`.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from components.errors import BadInput, CelebditError, TrackingCallMissing, TrackingRefused, TrackingUnavailable, first_line, shorten
from components.system.failures import os_failure, was_raised_in
from components.tracking.mlflow_answers import MlflowAnswer, answer_in
from components.tracking.mlflow_rights import missing_right, mlflow_user, sends_token
from components.tracking.server_version import OLDEST_MLFLOW
from components.tracking.unsent_requests import unsent_error, variable_error

_RETRY_HINT = "run it again when MLflow is back"
_PAGE_IN_TEXT = re.compile(r"not in a valid JSON format. Response body: '\s*<", re.IGNORECASE)
_NO_ANSWER = "failed with exception"
_REASON = re.compile(
    r"Connection refused|Read timed out|ConnectTimeout|[Ff]ailed to resolve|Name or service not known|Connection reset by peer"
    r"|\[SSL: \w+\]"
)
_FAILURES = re.compile(r"too many \d{3} error responses")
_REDIRECTIONS = "Exceeded 30 redirects"
_TEMPORARY = (408, 425, 429)
_TOO_LARGE = 413
_OLDEST = f"{OLDEST_MLFLOW[0]}.{OLDEST_MLFLOW[1]}"
_LACKS_CALL_HINT = f"use MLflow {_OLDEST} or newer; check MLFLOW_TRACKING_URI and any proxy before the server: celebdit doctor"
_PROXY_HINT = "let the proxy pass GET, POST, PUT, PATCH and DELETE of all paths below /api/2.0/mlflow and /api/2.0/mlflow-artifacts"
_NOT_DOWNLOADED = "Failed to download artifacts from path"
_DELETED = "must be in the 'active' state. Current state is deleted"
_log = logging.getLogger(__name__)


def _hint(answer: MlflowAnswer) -> str | None:
    """Return what to do about a request that was refused, where that is known."""
    if answer.status == _TOO_LARGE:
        return "raise the limit of the proxy before MLflow"
    if _NOT_DOWNLOADED in answer.text:
        return "MLflow does not say why: see that the artifact exists and that its artifact store may be read (MLFLOW_LOGGING_LEVEL=DEBUG)"
    if _DELETED in answer.text:
        return "it was deleted in MLflow: restore it with mlflow runs restore or mlflow experiments restore, then run it again"
    return None


@contextmanager
def translate_mlflow_errors(uri: str, *, experiment: str | None = None, model: str | None = None) -> Iterator[None]:
    """Run calls to the MLflow server at `uri`, about the named experiment and registered model.

    Raises:
        BadInput: if the server refuses access, or is not MLflow. TrackingRefused: if it refuses the request; TrackingCallMissing if it
            does not offer it.
        TrackingUnavailable: if it cannot be reached or fails. The same about object storage, where MLflow's client uses it itself.
    """
    try:
        yield
    except MlflowException as error:
        raise _error_of_client(uri, error, experiment, model) from error
    except OSError as error:
        raise _error_of_transport(uri, error, experiment, model) from error
    except CelebditError:
        raise
    except Exception as error:
        if (refused := _artifact_store_error(error) or variable_error(error)) is not None:
            raise refused from error
        if not was_raised_in(error, "mlflow", "google", "requests", "urllib3"):
            raise
        _log.debug("MLflow's client cannot read an answer", exc_info=error)
        raise _not_mlflow(uri, type(error).__name__) from error


def _artifact_store_error(error: Exception) -> CelebditError | None:
    from components.storage.mlflow_client import artifact_store_error  # noqa: PLC0415 - imports boto3

    return artifact_store_error(error)


def _error_of_client(uri: str, error: MlflowException, experiment: str | None, model: str | None) -> CelebditError:
    """Return the project's error for one that MLflow's client raised itself."""
    if (refused := _artifact_store_error(error) or unsent_error(uri, str(error))) is not None:
        return refused
    if error.error_code == "TEMPORARILY_UNAVAILABLE":
        return TrackingUnavailable(f"MLflow at {uri} failed: {first_line(error)}", hint=_RETRY_HINT)
    if _NO_ANSWER in str(error):
        return _unreached_error(uri, str(error))
    answer = answer_in(error)
    assert answer is not None, "MLflow's own errors have a status"
    if _PAGE_IN_TEXT.search(str(error)):
        return _not_mlflow(uri, f"it answers with a page, perhaps for a login{_request_of(answer)}")
    return _error_for(uri, answer, experiment, model)


def _error_of_transport(uri: str, error: OSError, experiment: str | None, model: str | None) -> Exception:
    """Return the project's error for one of the HTTP client or of a file on this machine, like a download for which there is no room."""
    if error.filename is not None:
        return os_failure(error) or error
    if (unsent := unsent_error(uri, str(error))) is not None:
        return unsent
    answer = answer_in(error)
    if isinstance(error, ValueError):  # as the error of `requests` for JSON that cannot be read is, too
        return _not_mlflow(uri, f"its answer is not JSON{_request_of(answer)}")
    return _unreached_error(uri, str(error)) if answer is None else _error_for(uri, answer, experiment, model)


def _not_mlflow(uri: str, reason: str) -> TrackingCallMissing:
    hint = "check MLFLOW_TRACKING_URI, and any proxy before the server"
    return TrackingCallMissing(f"{uri} does not answer as MLflow does: {reason}", hint=hint)


def _request_of(answer: MlflowAnswer | None) -> str:
    """Return the request of an answer in brackets, if it is known."""
    return f" ({answer.method} {answer.path})" if answer is not None and answer.path else ""


def _unreached_error(uri: str, text: str) -> CelebditError:
    """Return the error for a request that got no answer; `text` is what MLflow's client says of it."""
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BadInput(
            f"the certificate of MLflow at {uri} cannot be verified",
            hint="set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of the authority that signed it",
        )
    if "WRONG_VERSION_NUMBER" in text:
        return BadInput(f"MLflow at {uri} does not speak TLS", hint="write http:// instead of https:// in MLFLOW_TRACKING_URI")
    if _REDIRECTIONS in text:
        return _not_mlflow(uri, "it redirects without end, perhaps to a login")
    if failures := _FAILURES.search(text):
        return TrackingUnavailable(f"MLflow at {uri} failed: {failures[0]}", hint=_RETRY_HINT)
    reason = _REASON.search(text)
    cause = reason[0] if reason else shorten((text.splitlines() or ["no answer"])[0], max_characters=200)
    return TrackingUnavailable(f"MLflow at {uri} cannot be reached: {cause}", hint=_RETRY_HINT)


def _error_for(uri: str, answer: MlflowAnswer, experiment: str | None, model: str | None) -> CelebditError:
    """Return the project's error for an answer."""
    if answer.status in (401, 403):
        return _refused_access(uri, answer, experiment, model)
    if answer.lacks_call:
        refused = f"(HTTP {answer.status}{f' to {answer.method}' if answer.method else ''})"
        return TrackingCallMissing(f"MLflow at {uri} does not offer {answer.path or 'this call'} {refused}", hint=_LACKS_CALL_HINT)
    if not 400 <= answer.status < 500 or answer.status in _TEMPORARY:
        return TrackingUnavailable(f"MLflow at {uri} failed: {answer.summary}", hint=_RETRY_HINT)
    return TrackingRefused(f"MLflow at {uri} refuses: {answer.summary}", hint=_hint(answer))


def _refused_login(uri: str, user: str | None) -> str:
    """Return what MLflow does not accept; a user has a password, and takes precedence over a token."""
    if user is not None:
        return f"refuses access: it does not accept the password of user {user!r}"
    if sends_token(uri):
        return "refuses access: it does not accept MLFLOW_TRACKING_TOKEN, which may have expired"
    return "refuses access: it asks for a login"


def _refused_access(uri: str, answer: MlflowAnswer, experiment: str | None, model: str | None) -> BadInput:
    user = mlflow_user()
    if answer.status == 401:
        hint = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return BadInput(f"MLflow at {uri} {_refused_login(uri, user)}", hint=hint)
    if answer.is_page:  # MLflow itself refuses with a line of text
        return TrackingCallMissing(f"a proxy before MLflow at {uri} refuses {answer.method} {answer.path} (HTTP 403)", hint=_PROXY_HINT)
    if "Invalid Host" in answer.text:
        return BadInput(f"MLflow at {uri} refuses access: it does not accept this host name", hint="add it to the server's --allowed-hosts")
    right = missing_right(answer.path, method=answer.method, experiment=experiment, model=model)
    who = "the user" if user is None else f"user {user!r}"
    if right is None:
        reason = f" to {answer.path}" if answer.path else f": {answer.summary}"
        hint = "check MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and the server's --allowed-hosts"
        return BadInput(f"MLflow at {uri} refuses access{reason}", hint=hint)
    return BadInput(
        f"MLflow at {uri} refuses access: {who} lacks the right {right}",
        hint="ask an administrator of MLflow for it (docs/kubernetes.md), or log in as another user",
    )
