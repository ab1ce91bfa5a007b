"""One request to Kubeflow Pipelines: made, repeated where that is harmless, and its failure turned into an error for people.

Promises: temporary failures are tried again until a deadline; what makes something looks first, and looks again when the answer was lost or
somebody else was faster; a login page is not taken for an answer. Which requests there are is not known here.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import kfp_server_api
import urllib3
from kfp_server_api import ApiException

from components.environment import KFP_COOKIES, KFP_TOKEN
from components.errors import BadInput, CelebditError, TemporaryFailure
from components.system.retry import RetryPolicy, retry
from pipeline.kubeflow.address import KfpAddress

_TEMPORARY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for, and who hears of it."""

    request_timeout_s: float = 30.0
    """For one request."""
    deadline_s: float = 120.0
    """For all tries of what may be tried again."""
    sleep: Callable[[float], None] = time.sleep
    on_retry: Callable[[str], None] = lambda text: None


class Requests:
    """How one server is asked."""

    def __init__(self, address: KfpAddress, patience: Patience) -> None:
        configuration = kfp_server_api.Configuration(host=address.endpoint)
        if address.token:
            configuration.api_key = {"authorization": address.token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        configuration.ssl_ca_cert = address.ca_file
        configuration.retries = urllib3.Retry(0, redirect=0)  # retrying is decided here, where it is known what is idempotent
        self.client = kfp_server_api.ApiClient(configuration, cookie=address.cookies)
        self._address = address
        self._timeout = (min(10.0, patience.request_timeout_s), patience.request_timeout_s)
        self._policy = RetryPolicy(deadline_s=patience.deadline_s, first_pause_s=0.5)
        self._patience = patience

    def find_or_make(self, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """Return what is there, or make it; when the answer to making it was lost, or somebody was faster, look again."""

        def attempt() -> T:
            found = find()
            return make() if found is None else found

        return self._patiently(attempt, (TemporaryFailure, Exists))

    def ask(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request that may be repeated."""
        return self._patiently(lambda: self.ask_once(what, call, *arguments, **options), (TemporaryFailure,))

    def ask_once(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request; `call` is a method of the generated API, `what` it is for completes "could not ...".

        Raises:
            Exists: if something of that name is there already. TemporaryFailure: if it is worth another try. BadInput: if it is not.
        """
        try:
            # Only this form of the generated functions tells what kind of answer it was.
            with_headers = getattr(call.__self__, f"{call.__name__}_with_http_info")  # type: ignore[attr-defined]
            answer, _, headers = with_headers(*arguments, **options, _request_timeout=self._timeout)
        except ApiException as error:
            raise self._refused(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise TemporaryFailure(
                f"Kubeflow Pipelines at {self._address.endpoint} cannot be reached to {what}: {_reason(error)}",
                hint="check the address and the port-forward; doing it again is harmless",
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise self._not_kfp() from error
        if "json" not in headers.get("Content-Type", ""):
            raise self._not_kfp()
        return answer

    def plain(self, path: str) -> Any:
        """Return the JSON at `path`, which is not part of the generated API, or None if it cannot be had."""
        try:
            return self.client.call_api(
                path, "GET", response_type="object", auth_settings=["Bearer"], _request_timeout=self._timeout, _return_http_data_only=True
            )
        except (ApiException, urllib3.exceptions.HTTPError, ValueError):
            return None

    def _patiently(self, call: Callable[[], T], temporary: tuple[type[CelebditError], ...]) -> T:
        try:
            return retry(
                call,
                policy=self._policy,
                is_temporary=lambda error: isinstance(error, temporary) and not isinstance(error, _GaveUp),
                on_retry=lambda attempt, error: self._patience.on_retry(f"{error}; trying again"),
                sleep=self._patience.sleep,
            )
        except TemporaryFailure as error:
            raise _GaveUp(error.message, hint=error.hint) from error

    def _refused(self, what: str, error: ApiException) -> CelebditError:
        said = _server_message(error)
        where = f"Kubeflow Pipelines at {self._address.endpoint}"
        status = int(error.status or 0)
        if status in _TEMPORARY:
            return TemporaryFailure(
                f"{where} could not {what} (HTTP {status}): {said}", hint="its own log says why; doing it again is harmless"
            )
        if status == 409:
            return Exists(f"{where} already has it: {said}", hint="submit with --again for another run")
        hints = {
            401: f"it does not know who you are: set {KFP_TOKEN} or {KFP_COOKIES} (docs/kubernetes.md, Access)",
            403: f"you are known but not allowed to: ask for access to namespace {self._address.namespace or 'kubeflow'}, or name another",
            404: "check --endpoint, and the id if you gave one",
        }
        if 300 <= status < 400:
            return self._not_kfp()
        return BadInput(f"{where} refused to {what} (HTTP {status}): {said}", hint=hints.get(status))

    def _not_kfp(self) -> BadInput:
        return BadInput(
            f"what answers at {self._address.endpoint} is not Kubeflow Pipelines, perhaps a login page",
            hint=f"set {KFP_TOKEN} or {KFP_COOKIES}, or port-forward svc/ml-pipeline-ui (docs/kubernetes.md, Access)",
        )


class Exists(BadInput):
    """The server has something of that name already."""


class _GaveUp(TemporaryFailure):
    """A temporary failure that outlasted the deadline of an inner request, so that an outer one does not wait for it again."""


def _server_message(error: ApiException) -> str:
    """Return the first line of what the server said, without the page around it."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        raw = json.loads(body)
        text = str(raw.get("message") or raw.get("error_message") or raw.get("error") or "")
    except (ValueError, AttributeError):
        text = "" if body.lstrip().startswith("<") else body
    return " ".join((text or str(error.reason or "no reason given")).split())[:300]


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return " ".join(str(cause).split(":")[-1].split())[:200] or type(error).__name__
