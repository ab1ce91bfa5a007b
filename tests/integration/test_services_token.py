"""The embedded servers answer their own user alone: with the token, or with the link that holds it."""

import http.client
import json
import re
from urllib.parse import urlsplit

import psutil
import requests
from celebdit_testing.browser import browser_page, chromium_or_skip
from celebdit_testing.command import celebdit
from celebdit_testing.strangers import as_stranger

from pipeline.home import LOCK, hold_lock
from pipeline.services import Services

ROUTES = [
    ("GET", "/"),
    ("GET", "/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/static-files/static/js/main.js"),
    ("GET", "/get-artifact?path=x&run_uuid=y"),
    ("GET", "/model-versions/get-artifact?path=x&name=y&version=1"),
    ("POST", "/graphql"),
    ("POST", "/api/2.0/mlflow/experiments/search"),
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("DELETE", "/api/2.0/mlflow/registered-models/alias?name=x&alias=champion"),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=y"),
    ("GET", "/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id=x&metric_key=y"),
    ("GET", "/ajax-api/3.0/mlflow/server-info"),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=."),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/serving.py"),
    ("PUT", "/ajax-api/2.0/mlflow-artifacts/artifacts/serving.py"),
    ("POST", "/v1/traces"),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
    ("OPTIONS", "/api/2.0/mlflow/experiments/search"),
    ("GET", "/no/such/route"),
]

ASK = """
import http.client, json, sys
host, requests, statuses = sys.argv[1], json.loads(sys.argv[2]), []
for method, path in requests:
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None, headers={"content-type": "application/json"})
    statuses.append(connection.getresponse().status)
print(json.dumps(statuses))
"""


def address(url: str) -> str:
    return urlsplit(url).netloc


def token_of(embedded: Services) -> str:
    return embedded.wait().environment["MLFLOW_TRACKING_TOKEN"]


def ask(url: str, method: str, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection(address(url), timeout=20)
    connection.request(method, path, headers=headers)
    return connection.getresponse().status


def test_mlflow_refuses_everybody_without_the_token_whatever_they_ask(embedded: Services) -> None:
    url, token = embedded.wait().mlflow_url, token_of(embedded)
    asked = {
        (method, path): (ask(url, method, path), ask(url, method, path, Authorization=f"Bearer {token[:-1]}x")) for method, path in ROUTES
    }
    assert asked == dict.fromkeys(ROUTES, (401, 401))
    for path in ("/", "/health", "/version"):
        assert ask(url, "GET", path, Authorization=f"Bearer {token}") == 200
    assert 401 not in {ask(url, method, path, Authorization=f"Bearer {token}") for method, path in ROUTES if method == "GET"}
    assert ask(url, "GET", "/", Authorization=f"Bearer {token}", Host="evil.example") == 403, "MLflow's own check of the host is kept"


def test_another_user_is_refused_by_both_servers(embedded: Services) -> None:
    endpoints = embedded.wait()
    assert as_stranger(ASK, address(endpoints.mlflow_url), json.dumps(ROUTES)) == [401] * len(ROUTES)
    objects = [
        ("GET", "/"),
        ("GET", "/celebdit"),
        ("PUT", "/celebdit/x"),
        ("PUT", "/mlflow/artifacts/serving.py"),
        ("DELETE", "/celebdit/x"),
    ]
    assert set(as_stranger(ASK, address(endpoints.s3_url), json.dumps(objects))) <= {400, 401, 403}
    assert not (embedded.home / "s3" / "celebdit" / "x").exists()
    assert not (embedded.home / "s3" / "mlflow" / "artifacts" / "serving.py").exists()


def test_the_token_is_in_no_file_and_no_command_line(embedded: Services) -> None:
    endpoints = embedded.wait()
    requests.get(endpoints.link(f"{endpoints.mlflow_url}/"), timeout=20).raise_for_status()
    assert ask(endpoints.mlflow_url, "GET", f"/?token={token_of(embedded)}") == 303
    for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        secret = endpoints.environment[name]
        for path in embedded.home.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
        for process in psutil.process_iter(["cmdline"]):
            assert secret not in " ".join(process.info["cmdline"] or []), process


def test_a_person_opens_the_link_once_and_then_has_a_cookie(embedded: Services) -> None:
    endpoints = embedded.wait()
    page = f"{endpoints.mlflow_url}/"
    with requests.Session() as browser:
        browser.trust_env = False
        assert browser.get(page, timeout=20).status_code == 401
        opened = browser.get(endpoints.link(page), timeout=20)
        assert opened.status_code == 200
        assert opened.url == page, "the token is gone from the address"
        (cookie,) = browser.cookies
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "Lax"
        assert token_of(embedded) not in str(cookie.value)
        search = f"{page}ajax-api/2.0/mlflow/experiments/search"
        assert browser.post(search, json={"max_results": 1}, timeout=20).status_code == 200
        elsewhere = {"Origin": "http://127.0.0.1:9999"}
        assert browser.post(search, json={"max_results": 1}, headers=elsewhere, timeout=20).status_code == 401


def test_a_browser_shows_mlflow_after_the_link_and_not_before(embedded: Services) -> None:
    endpoints = embedded.wait()
    page_url = f"{endpoints.mlflow_url}/#/models?workflowType=machine_learning"
    with browser_page(chromium_or_skip()) as page:
        page.goto(f"{endpoints.mlflow_url}/")
        page.get_by_text("asks for its token").wait_for()
        page.goto(endpoints.link(page_url))
        page.get_by_text("Create Model").or_(page.get_by_text("Create model")).first.wait_for()
        assert page.url.startswith(f"{endpoints.mlflow_url}/#/models")


def test_the_ui_prints_links_with_the_token_and_its_json_does_not(embedded: Services) -> None:
    shown = celebdit("ui", "--json", home=embedded.home)
    try:
        assert shown.code == 0, shown.err
        links = re.findall(r"http://\S+", shown.err)
        token = token_of(embedded)
        opened = [link for link in links if f"?token={token}#/" in link]
        assert len(opened) == 2
        assert all(requests.get(link.partition("#")[0], timeout=20).status_code == 200 for link in opened)
        assert token not in shown.out
    finally:
        state = embedded.home / "services.json"
        with hold_lock(embedded.home / LOCK):  # they go with their last user again
            state.write_text(json.dumps({**json.loads(state.read_text()), "stay": False}))


def test_the_state_and_the_database_are_readable_by_their_user_alone(embedded: Services) -> None:
    assert embedded.home.stat().st_mode & 0o077 == 0
    for name in ("services.json", "services.lock", "mlflow.db", "s3", "logs"):
        assert (embedded.home / name).stat().st_mode & 0o077 == 0, name
