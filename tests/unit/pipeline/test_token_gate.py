"""The gate before the embedded MLflow: what opens it, and what does not."""

import asyncio
import base64
from typing import Any

import pytest

from pipeline.token_gate import TokenGate, link

TOKEN = "a-token-of-forty-characters-0123456789ab"
HOST = "127.0.0.1:5000"


def ask(path: str = "/", *, method: str = "GET", query: str = "", kind: str = "http", **headers: str) -> tuple[int, dict[str, str]]:
    """The answer to one request: status and headers; 299 if it reached the application behind the gate."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in {"host": HOST, **headers}.items()]
    scope = {"type": kind, "method": method, "path": path, "query_string": query.encode("latin-1"), "headers": pairs}
    if kind == "websocket":
        del scope["method"]
    asyncio.run(TokenGate(app, TOKEN, port=5000)(scope, send, send))
    response = sent[0]
    if response["type"] == "websocket.close":
        return 401, {}
    return response["status"], {name.decode(): value.decode() for name, value in response["headers"]}


def cookie() -> str:
    status, headers = ask(query=f"token={TOKEN}")
    assert status == 303
    return headers["set-cookie"].partition(";")[0]


def test_a_client_needs_the_token() -> None:
    basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    for authorization in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
        assert ask(authorization=authorization)[0] == 299, authorization
    wrong = (
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \xe9",
        "Basic !!",
        f"Basic {TOKEN}",
        f"Digest {TOKEN}",
    )
    for authorization in wrong:
        status, headers = ask(authorization=authorization)
        assert status == 401, authorization
        assert headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path", ["/", "/health", "/version", "/graphql", "/static-files/main.js", "/api/2.0/mlflow-artifacts/artifacts/x", "//x"]
)
def test_nothing_is_open(path: str, method: str) -> None:
    assert ask(path, method=method)[0] == 401


def test_a_websocket_is_refused() -> None:
    assert ask(kind="websocket") == (401, {})


def test_a_link_gives_a_cookie_once_and_goes_on_without_the_token() -> None:
    status, headers = ask("/a b/", query=f"x=1&token={TOKEN}&y=%26")
    assert (status, headers["location"]) == (303, "/a%20b/?x=1&y=%26")
    assert headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Lax")
    assert headers["referrer-policy"] == "no-referrer"
    assert TOKEN not in str(headers)
    assert ask(cookie=cookie())[0] == 299


def test_a_link_leads_to_no_other_host() -> None:
    for path in ("//evil.example/", "/\\evil.example", "///evil.example"):
        location = ask(path, query=f"token={TOKEN}")[1]["location"]
        assert location.startswith("/"), location
        assert not location.startswith(("//", "/\\")), location


def test_a_link_counts_in_a_visit_alone_and_only_with_one_right_token() -> None:
    assert ask(method="POST", query=f"token={TOKEN}")[0] == 401
    for query in ("token=", f"token={TOKEN}&token=x", f"token={TOKEN}x", "token=%ff"):
        assert ask(query=query)[0] == 401, query


def test_a_cookie_of_another_port_or_of_another_start_is_nothing() -> None:
    name, _, value = cookie().partition("=")
    assert name == "celebdit-mlflow-5000"
    for wrong in (f"celebdit-mlflow-5001={value}", f"{name}={TOKEN}", f"{name}={value[:-1]}", f"{name}=", "x", ";;=\x01"):
        assert ask(cookie=wrong)[0] == 401, wrong


def test_pages_of_other_servers_cannot_use_the_cookie() -> None:
    mine = cookie()
    for headers in (
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "cors"},
        {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors", "origin": f"http://{HOST}"},
    ):
        assert ask("/ajax-api/2.0/mlflow/runs/delete", method="POST", cookie=mine, **headers)[0] == 401, headers
    assert ask(method="POST", cookie=mine, sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 401
    for headers in (
        {"origin": f"http://{HOST}"},
        {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "origin": f"http://{HOST}"},
    ):
        assert ask("/ajax-api/2.0/mlflow/runs/delete", method="POST", cookie=mine, **headers)[0] == 299, headers
    for site in ("none", "cross-site", "same-site"):
        assert ask(cookie=mine, sec_fetch_site=site, sec_fetch_mode="navigate")[0] == 299, "a person follows a link"


def test_the_link_keeps_what_stays_in_the_browser() -> None:
    assert link(f"http://{HOST}/#/runs?x=1", "t+k") == f"http://{HOST}/?token=t%2Bk#/runs?x=1"
