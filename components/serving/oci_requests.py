"""Requests to one repository of a container registry, with the login that it asks for (distribution API 1.1).

Promises: passwords go to the registry, and to the token server that it names, by TLS (to this machine without), and to nothing else: a
server that the registry sends a client on to gets none, whatever it asks for. At most 4 MiB of an answer are read.
"""

import base64
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from components.errors import BadInput, TemporaryFailure, shorten
from components.serving.oci_reference import ImageReference, Login, is_loopback
from components.system.proxies import proxy_for
from components.system.retry import RetryPolicy, retry

_TEMPORARY = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_TIMEOUT = urllib3.Timeout(connect=10.0, read=120.0)
_MAX_BYTES = 4 * 2**20
"""What the specification lets a manifest have; a configuration is smaller."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """An answer, and the address that it came from, after redirects."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    url: str


def parse_json(data: bytes) -> Any:
    """Return what JSON holds.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error


class RepositoryRequests:
    """Makes requests at the paths of one repository."""

    def __init__(self, reference: ImageReference, login: Login | None, policy: RetryPolicy) -> None:
        self._reference, self._login, self._policy = reference, login, policy
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._authorization: str | None = None

    def call(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...],
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        repeat: bool = True,
    ) -> Answer:
        """Make a request at a path of the repository or at an address, and log in if the registry asks for that.

        Raises:
            BadInput: if the registry refuses it. TemporaryFailure: if it is unavailable, also after attempts with `repeat`.
        """
        url = path if "://" in path else self.url(path)

        def attempt() -> Answer:
            answer = self._send(method, url, body, headers or {})
            if answer.status == 401 and self._is_ours(answer.url) and self._log_in(answer.headers.get("WWW-Authenticate", "")):
                if body is not None and not isinstance(body, bytes):
                    body.seek(0)
                answer = self._send(method, url, body, headers or {})
            if answer.status not in expected:
                raise self._error(method, path, answer)
            return answer

        return self.insist(f"{method} {path}", attempt) if repeat else attempt()

    def insist(self, what: str, attempt: Callable[[], Any]) -> Any:
        """Return what `attempt` returns, repeated while it fails temporarily; `what` names it in the log."""

        def is_temporary(error: Exception) -> bool:
            return isinstance(error, TemporaryFailure)

        return retry(attempt, what=f"{self._reference.host}: {what}", log=_log, policy=self._policy, is_temporary=is_temporary)

    def url(self, path: str) -> str:
        """Return the address of a path of the repository."""
        return f"{self._reference.base_url}/v2/{self._reference.repository}/{path}"

    def _is_ours(self, url: str) -> bool:
        """Return whether the registry itself is at `url`."""
        return urlsplit(url).netloc == urlsplit(self._reference.base_url).netloc

    def _send(self, method: str, url: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]) -> Answer:
        """Make a request, and follow where a registry keeps its blobs; the answer has the last address."""
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._send_once(method, url, body, headers)
            location = answer.headers.get("Location")
            if method not in ("GET", "HEAD") or answer.status not in _REDIRECTS or not location:
                return answer
            url = urljoin(url, location)
        raise BadInput(f"{self._reference.host} redirects without end", hint="check the host; it may be a login page or a proxy")

    def _send_once(self, method: str, url: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]) -> Answer:
        if urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).netloc):
            raise BadInput(f"{self._reference.host} sends this client to {shorten(url)}, without TLS", hint="use a registry with TLS")
        authorization = {"Authorization": self._authorization} if self._is_ours(url) and self._authorization else {}
        try:
            return self._request(method, url, {**headers, **authorization}, body)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError):
                raise BadInput(
                    f"{urlsplit(url).netloc} cannot be trusted: {_reason(error)}",
                    hint="a registry needs TLS; for a certificate authority of your own set SSL_CERT_FILE",
                ) from error
            raise TemporaryFailure(f"{urlsplit(url).netloc} is unavailable: {_reason(error)}", hint="run the command again") from error

    def _request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | IO[bytes] | None = None) -> Answer:
        answer = self._pool_for(url).request(method, url, body=body, headers=headers, redirect=False, preload_content=False)
        try:
            data = answer.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise BadInput(
                    f"{urlsplit(url).netloc} answers {method} with more than {_MAX_BYTES // 2**20} MiB", hint="check the name of the image"
                )
            answer.read(1)  # at the end urllib3 compares the length
            return Answer(answer.status, answer.headers, data, url)
        finally:
            answer.close()

    def _pool_for(self, url: str) -> urllib3.PoolManager:
        """Return the connections to the proxy before `url`, or those without one."""
        proxy = proxy_for(url)
        key = None if proxy is None else proxy.url
        if key not in self._pools:
            options: dict[str, Any] = {"timeout": _TIMEOUT, "retries": False}
            self._pools[key] = (
                urllib3.PoolManager(**options) if proxy is None else urllib3.ProxyManager(proxy.url, proxy_headers=proxy.headers, **options)
            )
        return self._pools[key]

    def _log_in(self, challenge: str) -> bool:
        """Prepare the authorization that the registry asks for; returns whether there is another one than before."""
        scheme, _, rest = challenge.partition(" ")
        values = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        before = self._authorization
        if scheme.lower() == "basic" and self._login is not None:
            self._authorization = self._basic()
        elif scheme.lower() == "bearer" and values.get("realm"):
            self._authorization = self._fetch_token(values)
        return self._authorization != before

    def _basic(self) -> str | None:
        if self._login is None:
            return None
        return "Basic " + base64.b64encode(f"{self._login.user}:{self._login.password}".encode()).decode()

    def _fetch_token(self, values: Mapping[str, str]) -> str | None:
        query = urlencode({key: values[key] for key in ("service", "scope") if key in values})
        url = f"{values['realm']}{'&' if '?' in values['realm'] else '?'}{query}"
        if urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).netloc):
            raise BadInput(f"{self._reference.host} asks for the password at {shorten(values['realm'])}, without TLS")
        basic = self._basic()
        try:
            answer = self._request("GET", url, {"Authorization": basic} if basic else {})
            content = parse_json(answer.data) if answer.status == 200 else {}
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TemporaryFailure(f"{urlsplit(url).netloc} gives no token: {_reason(error)}", hint="run the command again") from error
        if answer.status in _TEMPORARY:
            raise TemporaryFailure(f"{urlsplit(url).netloc} gives no token (HTTP {answer.status})", hint="run the command again")
        token = content.get("token") or content.get("access_token")
        return f"Bearer {token}" if token else None

    def _error(self, method: str, path: str, answer: Answer) -> BadInput | TemporaryFailure:
        host, repository = self._reference.host, self._reference.repository
        reason = _message(answer)
        place = shorten(path.partition("?")[0])
        if answer.status in _TEMPORARY:
            return TemporaryFailure(f"{host} could not {method} (HTTP {answer.status}): {reason}", hint="run the command again")
        if answer.status in (401, 403):
            who = f"user {self._login.user}" if self._login else "a request without a login"
            return BadInput(
                f"{host} does not allow {who} to use {repository} (HTTP {answer.status}): {reason}",
                hint=f"log in with a user who may push: podman login {host} (or docker login)",
            )
        if answer.status == 404:
            return BadInput(f"{host} has no {place} in {repository} (HTTP 404): {reason}", hint="check the name")
        return BadInput(
            f"{host} refused to {method} {place} (HTTP {answer.status}): {reason}", hint="check the registry's rules for this repository"
        )


def _message(answer: Answer) -> str:
    """Return what the registry gives as the reason, on one line."""
    try:
        errors = parse_json(answer.data)["errors"]
        text = "; ".join(f"{error.get('code', '')} {error.get('message', '')}".strip() for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = ""
    return shorten(" ".join(text.split()), max_characters=300) or "no reason given"


def _reason(error: Exception) -> str:
    return shorten(" ".join(str(getattr(error, "reason", None) or error).split()), max_characters=200) or type(error).__name__
