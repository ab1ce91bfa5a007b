"""Require the token of the embedded MLflow server in each request, as Jupyter does.

Promises: every request without the token is answered with 401, whatever its path and method, before the server behind sees it. Clients send
the token in the header `Authorization`, as a bearer token or as a password. A person opens a link with it once, is sent on without it and
gets a cookie that scripts cannot read; the cookie does not count in requests from pages of other servers, because browsers send it to all
ports of a host. Comparisons take the same time wherever the texts differ.
"""

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PARAMETER = "token"
_SAFE_METHODS = ("GET", "HEAD")
_REFUSAL = "This MLflow server asks for its token. `celebdit ui` prints a link with it, `celebdit services env` prints it for programs.\n"


def link(url: str, token: str) -> str:
    """Return `url`, an address of the MLflow UI, with the token as its query; the part after `#` stays in the browser."""
    base, mark, fragment = url.partition("#")
    return f"{base}?{urlencode({PARAMETER: token})}{mark}{fragment}"


class TokenGate:
    """An ASGI application that passes requests with the token on to another one."""

    def __init__(self, app: App, token: str, *, port: int) -> None:
        self._app, self._token = app, token.encode()
        self._cookie_name = f"celebdit-mlflow-{port}"  # cookies of all ports of a host are sent to each of them
        self._cookie = hmac.new(self._token, b"cookie of a browser", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._has_token(headers) or self._has_cookie(scope, headers):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] in _SAFE_METHODS and self._is_link(scope):
            await self._welcome(scope, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(send, 401, [("www-authenticate", "Bearer"), ("content-type", "text/plain; charset=utf-8")], _REFUSAL.encode())

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        token = value.strip().encode()
        if scheme.lower() == "basic":
            try:
                token = base64.b64decode(token, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return scheme.lower() in ("bearer", "basic") and hmac.compare_digest(token, self._token)

    def _has_cookie(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie_name)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._cookie.encode()) and _is_own_page(scope, headers)

    def _is_link(self, scope: Scope) -> bool:
        tokens = [value for key, value in _query(scope) if key == PARAMETER]
        return len(tokens) == 1 and hmac.compare_digest(tokens[0].encode(), self._token)

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """Give the browser its cookie, and send it on to the same page without the token."""
        rest = urlencode([(key, value) for key, value in _query(scope) if key != PARAMETER])
        # A path that began with two slashes would be another host.
        path = "/" + quote(scope["path"].lstrip("/\\"))
        cookie = f"{self._cookie_name}={self._cookie}; Path=/; HttpOnly; SameSite=Lax"
        await _answer(send, 303, [("location", path + (f"?{rest}" if rest else "")), ("set-cookie", cookie)])


def _is_own_page(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Return whether a browser's request comes from a page of this server, or from a person who follows a link."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        is_visit = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") in _SAFE_METHODS
        return site in ("same-origin", "none") or is_visit
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


async def _answer(send: Send, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
    headers += [("cache-control", "no-store"), ("referrer-policy", "no-referrer"), ("content-length", str(len(body)))]
    await send({"type": "http.response.start", "status": status, "headers": [(name.encode(), value.encode()) for name, value in headers]})
    await send({"type": "http.response.body", "body": body})
