"""Make one request to Kubeflow Pipelines, retry it where that is safe, and translate its failure into an error with a hint.

Promises: temporary failures are retried until a deadline; objects are looked up before they are created, and again if the response was
lost or another client created them; a login page is not mistaken for a response. The operations are in `server.py`.
"""

import json
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import kfp_server_api
import urllib3
from kfp_server_api import ApiException

from components.environment import KFP_CA_FILE, KFP_COOKIES, KFP_TOKEN
from components.errors import BadInput, CelebditError, TemporaryFailure
from components.system.connection_errors import is_header_refused, plain_reason, tls_fault
from components.system.proxies import proxy_for
from components.system.retry import RetryPolicy, retry
from pipeline.kubeflow.address import KfpAddress

PAGE_SIZE = 100
"""Entries on a page of a listing."""
_TEMPORARY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server."""

    request_timeout_s: float = 30.0
    """Timeout of one request."""
    deadline_s: float = 120.0
    """Deadline for all attempts of one operation."""
    sleep: Callable[[float], None] = time.sleep


class Requests:
    """Requests to one server."""

    def __init__(self, address: KfpAddress, patience: Patience) -> None:
        configuration = kfp_server_api.Configuration(host=address.endpoint)
        if address.token:
            configuration.api_key = {"authorization": address.token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
        if address.ca_file is not None:
            _require_authorities(address.ca_file)
        configuration.ssl_ca_cert = address.ca_file
        if (proxy := proxy_for(address.endpoint)) is not None:
            configuration.proxy, configuration.proxy_headers = proxy.url, proxy.headers
        configuration.retries = urllib3.Retry(0, redirect=0)  # retries are made here, because only some requests are idempotent
        self.client = kfp_server_api.ApiClient(configuration, cookie=address.cookies)
        self._address = address
        self._timeout = (min(10.0, patience.request_timeout_s), patience.request_timeout_s)
        self._policy = RetryPolicy(deadline_s=patience.deadline_s, first_pause_s=0.5)
        self._patience = patience

    def find_or_make(self, find: Callable[[], T | None], make: Callable[[], T]) -> T:
        """Return the existing object, or create it; look it up again if the response was lost or another client created it."""

        def attempt() -> T:
            existing = find()
            return make() if existing is None else existing

        return self._with_retries("find or create", attempt, (TemporaryFailure, Exists))

    def ask(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make a request that is safe to retry."""
        return self._with_retries(what, lambda: self.ask_once(what, call, *arguments, **options), (TemporaryFailure,))

    def list_entries(self, what: str, call: Callable[..., Any], field: str, *, limit: int | None = None, **query: Any) -> list[Any]:
        """Return `field` of all pages of a listing, or its first `limit` entries."""
        entries: list[Any] = []
        token = ""
        while limit is None or len(entries) < limit:
            size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(entries))
            page = self.ask(what, call, page_size=size, page_token=token, **query)
            entries += getattr(page, field) or []
            token = page.next_page_token
            if not token:
                break
        return entries

    def ask_once(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Make one request; `call` is a method of the generated API, `what` completes "could not ..." in errors.

        Raises:
            Exists: if an object of that name exists. TemporaryFailure: if a retry may help. BadInput: if it does not.
        """
        try:
            # Only this form of the generated functions returns the content type of the response.
            with_headers = getattr(call.__self__, f"{call.__name__}_with_http_info")  # type: ignore[attr-defined]
            answer, _, headers = with_headers(*arguments, **options, _request_timeout=self._timeout)
        except ApiException as error:
            raise self._translate_error(what, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise self._connection_error(what, error) from error
        except (ValueError, TypeError, AttributeError) as error:
            if is_header_refused(error):
                raise BadInput(
                    f"no request to Kubeflow Pipelines can be made: a header cannot hold {KFP_TOKEN} or {KFP_COOKIES}",
                    hint="set it again without line breaks, and without letters that are not ASCII",
                ) from None  # the error has the value
            raise self._not_kfp() from error
        if "json" not in headers.get("Content-Type", ""):
            raise self._not_kfp()
        return answer

    def plain(self, path: str) -> Any:
        """Return the JSON at `path`, which is not part of the generated API, or None if the request fails."""
        try:
            return self.client.call_api(
                path, "GET", response_type="object", auth_settings=["Bearer"], _request_timeout=self._timeout, _return_http_data_only=True
            )
        except (ApiException, urllib3.exceptions.HTTPError, ValueError):
            return None

    def _with_retries(self, what: str, call: Callable[[], T], temporary: tuple[type[CelebditError], ...]) -> T:
        try:
            return retry(
                call,
                what=f"Kubeflow Pipelines: {what}",
                log=_log,
                policy=self._policy,
                is_temporary=lambda error: isinstance(error, temporary) and not isinstance(error, _DeadlineExceeded),
                sleep=self._patience.sleep,
            )
        except TemporaryFailure as error:
            raise _DeadlineExceeded(error.message, hint=error.hint) from error

    def _translate_error(self, what: str, error: ApiException) -> CelebditError:
        message = _server_message(error)
        server = f"Kubeflow Pipelines at {self._address.endpoint}"
        status = int(error.status or 0)
        if status in _TEMPORARY:
            return TemporaryFailure(
                f"{server} could not {what} (HTTP {status}): {message}", hint="see the server's log; the command is safe to repeat"
            )
        if status == 409:
            return Exists(f"{server} already has this object: {message}", hint="use --again to start another run")
        hints = {
            401: f"not authenticated: set {KFP_TOKEN} or {KFP_COOKIES} (docs/kubernetes.md, Access)",
            403: f"not authorised: ask for access to namespace {self._address.namespace or 'kubeflow'}, or use another --namespace",
            404: "check --endpoint, and the run id if you gave one",
        }
        if 300 <= status < 400:
            return self._not_kfp()
        return BadInput(f"{server} refused to {what} (HTTP {status}): {message}", hint=hints.get(status))

    def _connection_error(self, what: str, error: urllib3.exceptions.HTTPError) -> CelebditError:
        """Return the error for a request that got no answer."""
        server = f"Kubeflow Pipelines at {self._address.endpoint}"
        if (fault := tls_fault(error)) is not None:
            return BadInput(
                f"{server} cannot be used: {fault}",
                hint=f"check the endpoint, and {KFP_CA_FILE}, the file of the authority that signed the certificate",
            )
        return TemporaryFailure(
            f"{server} is unavailable, could not {what}: {plain_reason(error)}",
            hint="check the endpoint and the port-forward; the command is safe to repeat",
        )

    def _not_kfp(self) -> BadInput:
        return BadInput(
            f"the server at {self._address.endpoint} is not Kubeflow Pipelines; it may be a login page",
            hint=f"set {KFP_TOKEN} or {KFP_COOKIES}, or port-forward svc/ml-pipeline-ui (docs/kubernetes.md, Access)",
        )


class Exists(BadInput):
    """The server has an object of that name already."""


class _DeadlineExceeded(TemporaryFailure):
    """The deadline of an inner operation passed; the outer operation must not retry it."""


def _require_authorities(file: str) -> None:
    """Check that certificates of authorities can be read from `file`, without which each request fails as in an outage."""
    try:
        ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError, too
        reason = error.strerror if error.filename else plain_reason(error)
        raise BadInput(f"{KFP_CA_FILE} {file} cannot be read: {reason}", hint="set it to a file of certificates in PEM") from error


def _server_message(error: ApiException) -> str:
    """Return the error message in the response, without HTML."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        raw = json.loads(body)
        text = str(raw.get("message") or raw.get("error_message") or raw.get("error") or "")
    except (ValueError, AttributeError):
        text = "" if body.lstrip().startswith("<") else body
    return " ".join((text or str(error.reason or "no reason given")).split())[:300]
