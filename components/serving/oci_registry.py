"""Client of a container registry: uploads images by the distribution API of the Open Container Initiative (1.1).

Promises: blobs that the registry has are not uploaded again; the tag appears last, when all that it names is there; passwords go to the
registry, and to the token server that it names, by TLS (to this machine without), and to nothing else. An upload reads the layer as a
stream. oras-py, the published client, reads each layer into memory at once and repeats refused logins for minutes.
"""

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from components.errors import BadInput, TemporaryFailure, first_line
from components.serving.oci_image import INDEX_TYPE, MANIFEST_TYPE, BaseImage, OciImage, blobs_of, digest_of, layers_of
from components.serving.oci_reference import ImageReference, Login, is_loopback
from components.system.retry import RetryPolicy, retry

_TEMPORARY = (408, 429, 500, 502, 503, 504)
_ONCE = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=3)
"""Redirects to where a registry keeps its blobs are followed, without the password; other retries are made here."""
_TIMEOUT = urllib3.Timeout(connect=10.0, read=120.0)
_DOCKER_TYPES = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MAX_BYTES = 4 * 2**20
_log = logging.getLogger(__name__)
Answer = urllib3.BaseHTTPResponse


@dataclass
class ImageRegistry:
    """One repository of one registry."""

    reference: ImageReference
    login: Login | None
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(deadline_s=60.0))

    def __post_init__(self) -> None:
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=_ONCE)
        self._authorization: str | None = None

    def push(self, image: OciImage) -> None:
        """Upload an image and give it the tag of the reference.

        Raises:
            BadInput: if the registry refuses it. TemporaryFailure: if the registry is unavailable or an upload broke.
        """
        with self._reading_answers():
            self._push(image)

    def _push(self, image: OciImage) -> None:
        for layer in image.base.layers if image.base else ():
            self._mount(layer["digest"], image.base.repository if image.base else "")
        for digest, file, size in blobs_of(image):
            if not self._has(digest):
                self._upload(digest, file, size)
        answer = self._call("PUT", f"manifests/{self.reference.reference}", (201,), image.manifest, {"Content-Type": MANIFEST_TYPE})
        stored = answer.headers.get("Docker-Content-Digest", image.digest)
        if stored != image.digest:
            raise BadInput(f"{self.reference.host} stored {stored} instead of {image.digest}", hint="it changes manifests: use another")

    def base(self) -> BaseImage:
        """Return the image of the reference as a base: that of linux/amd64 where it has several.

        Raises:
            BadInput: if it does not exist, or has none for that platform.
        """
        with self._reading_answers():
            return self._base()

    def _base(self) -> BaseImage:
        manifest = self._manifest(self.reference.reference)
        if "manifests" in manifest:
            entries = [entry["digest"] for entry in manifest["manifests"] if _is_amd64(entry.get("platform") or {})]
            if not entries:
                raise BadInput(f"{self.reference} has no image for linux/amd64", hint="name another --base")
            manifest = self._manifest(entries[0])
        digest = manifest["config"]["digest"]
        config = self._call("GET", f"blobs/{digest}", (200,)).data
        if digest_of(config) != digest:
            raise BadInput(f"{self.reference.host} answers with another configuration than {digest}")
        return BaseImage(self.reference.repository, tuple(layers_of(manifest)), json.loads(config))

    @contextmanager
    def _reading_answers(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # an address or JSON that is none, or without a field
            kind = type(error).__name__
            raise BadInput(
                f"{self.reference.host} does not answer as a container registry does ({kind}: {first_line(error)})",
                hint="check the host; it may be a login page or a proxy",
            ) from error

    def _manifest(self, reference: str) -> dict[str, Any]:
        accept = ", ".join((MANIFEST_TYPE, INDEX_TYPE, *_DOCKER_TYPES))
        data = self._call("GET", f"manifests/{reference}", (200,), headers={"Accept": accept}).data
        if reference.startswith("sha256:") and digest_of(data) != reference:
            raise BadInput(f"{self.reference.host} answers with another manifest than {reference}")
        return dict(json.loads(data))

    def _has(self, digest: str) -> bool:
        return self._call("HEAD", f"blobs/{digest}", (200, 404)).status == 200

    def _mount(self, digest: str, repository: str) -> None:
        if self._has(digest):
            return
        query = urlencode({"mount": digest, "from": repository})
        if self._call("POST", f"blobs/uploads/?{query}", (201, 202)).status != 201:
            raise BadInput(
                f"{self.reference.host} does not share layers between {repository} and {self.reference.repository}",
                hint=f"push the base to {self.reference.host}/{self.reference.repository} first, and name it there",
            )

    def _upload(self, digest: str, file: IO[bytes], size: int) -> None:
        def attempt() -> None:
            started = self._call("POST", "blobs/uploads/", (202,), repeat=False)
            place = urljoin(self._url("blobs/uploads/"), started.headers.get("Location", ""))
            joint = "&" if urlsplit(place).query else "?"
            file.seek(0)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            self._call("PUT", f"{place}{joint}{urlencode({'digest': digest})}", (201,), file, headers, repeat=False)

        self._insist(f"upload {digest[:19]}", attempt)

    def _call(
        self,
        method: str,
        path: str,
        expected: tuple[int, ...],
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        repeat: bool = True,
    ) -> Answer:
        """Make a request at a path of the repository or at an address, and log in if the registry asks for that."""
        url = path if "://" in path else self._url(path)

        def attempt() -> Answer:
            answer = self._send(method, url, body, headers or {})
            if answer.status == 401 and self._log_in(answer.headers.get("WWW-Authenticate", "")):
                if body is not None and not isinstance(body, bytes):
                    body.seek(0)
                answer = self._send(method, url, body, headers or {})
            if answer.status not in expected:
                raise self._error(method, path, answer)
            return answer

        return self._insist(f"{method} {path}", attempt) if repeat else attempt()

    def _insist(self, what: str, attempt: Callable[[], Any]) -> Any:
        def is_temporary(error: Exception) -> bool:
            return isinstance(error, TemporaryFailure)

        return retry(attempt, what=f"{self.reference.host}: {what}", log=_log, policy=self.policy, is_temporary=is_temporary)

    def _send(self, method: str, url: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]) -> Answer:
        if urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).netloc):
            raise BadInput(f"{self.reference.host} asks for an upload to {url[:100]}, without TLS", hint="use a registry with TLS")
        ours = urlsplit(url).netloc == urlsplit(self.reference.base_url).netloc
        authorization = {"Authorization": self._authorization} if ours and self._authorization else {}
        try:
            return self._pool.request(method, url, body=body, headers={**headers, **authorization}, redirect=method in ("GET", "HEAD"))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(getattr(error, "reason", error), urllib3.exceptions.SSLError):
                raise BadInput(
                    f"{urlsplit(url).netloc} cannot be trusted: {_reason(error)}",
                    hint="a registry needs TLS; for a certificate authority of your own set SSL_CERT_FILE",
                ) from error
            raise TemporaryFailure(f"{urlsplit(url).netloc} is unavailable: {_reason(error)}", hint="run the command again") from error

    def _log_in(self, challenge: str) -> bool:
        """Prepare the authorization that the registry asks for; returns whether there is another one than before."""
        scheme, _, rest = challenge.partition(" ")
        values = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        before = self._authorization
        if scheme.lower() == "basic" and self.login is not None:
            self._authorization = self._basic()
        elif scheme.lower() == "bearer" and values.get("realm"):
            self._authorization = self._fetch_token(values)
        return self._authorization != before

    def _basic(self) -> str | None:
        if self.login is None:
            return None
        return "Basic " + base64.b64encode(f"{self.login.user}:{self.login.password}".encode()).decode()

    def _fetch_token(self, values: Mapping[str, str]) -> str | None:
        query = urlencode({key: values[key] for key in ("service", "scope") if key in values})
        url = f"{values['realm']}{'&' if '?' in values['realm'] else '?'}{query}"
        if urlsplit(url).scheme != "https" and not is_loopback(urlsplit(url).netloc):
            raise BadInput(f"{self.reference.host} asks for the password at {values['realm'][:100]}, without TLS")
        basic = self._basic()
        try:
            answer = self._pool.request("GET", url, headers={"Authorization": basic} if basic else {}, redirect=False)
            content = json.loads(answer.data) if answer.status == 200 else {}
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TemporaryFailure(f"{urlsplit(url).netloc} gives no token: {_reason(error)}", hint="run the command again") from error
        if answer.status in _TEMPORARY:
            raise TemporaryFailure(f"{urlsplit(url).netloc} gives no token (HTTP {answer.status})", hint="run the command again")
        token = content.get("token") or content.get("access_token")
        return f"Bearer {token}" if token else None

    def _url(self, path: str) -> str:
        return f"{self.reference.base_url}/v2/{self.reference.repository}/{path}"

    def _error(self, method: str, path: str, answer: Answer) -> BadInput | TemporaryFailure:
        host, repository = self.reference.host, self.reference.repository
        said = _message(answer)
        if answer.status in _TEMPORARY:
            return TemporaryFailure(f"{host} could not {method} (HTTP {answer.status}): {said}", hint="run the command again")
        if answer.status in (401, 403):
            who = f"user {self.login.user}" if self.login else "a request without a login"
            return BadInput(
                f"{host} does not allow {who} to use {repository} (HTTP {answer.status}): {said}",
                hint=f"log in with a user who may push: podman login {host} (or docker login)",
            )
        if answer.status == 404:
            return BadInput(f"{host} has no {path.partition('?')[0]} in {repository} (HTTP 404): {said}", hint="check the name")
        return BadInput(f"{host} refused to {method} {path.partition('?')[0][:80]} (HTTP {answer.status}): {said}")


def _is_amd64(platform: Mapping[str, Any]) -> bool:
    return platform.get("os") == "linux" and platform.get("architecture") == "amd64"


def _message(answer: Answer) -> str:
    """Return what the registry gives as the reason, on one line."""
    try:
        errors = json.loads(answer.data[:_MAX_BYTES])["errors"]
        text = "; ".join(f"{error.get('code', '')} {error.get('message', '')}".strip() for error in errors)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = ""
    return " ".join(text.split())[:300] or "no reason given"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split())[:200] or type(error).__name__
