"""Servers that are reached through a forward proxy, and those of this machine, which are not; with the settings that a pod gets."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.forward_proxy import ForwardProxy, forward_proxy
from celebdit_testing.http_server import answering
from celebdit_testing.private_ca import OUTSIDE, tls_in_front_of
from celebdit_testing.servers import ACCESS_KEY, SECRET_KEY

from components.system.child_environment import child_environment
from pipeline.embedded_environment import _no_proxy

pytestmark = [pytest.mark.fault, pytest.mark.slow]  # each process imports MLflow

STORE = "s3.outside.example"
CODE = """
import os
from components.settings import Settings
from components.storage import StoreUri, connect
from components.tracking.server_version import check_server_version
settings = Settings.from_environment()
store = connect(settings.s3_endpoint, deadline_s=1)
uri = StoreUri.parse(settings.store_uri) / "proxy" / "x"
store.put_bytes(uri, b"data")
print(store.get_bytes(uri).decode(), check_server_version(settings.mlflow_uri))
"""
VERSION = b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: close\r\n\r\n3.17.0"


class Surroundings:
    """A store and an MLflow of this machine, and a proxy that knows them under names outside."""

    def __init__(self, proxy: ForwardProxy, store: str, mlflow: str, ca_file: Path) -> None:
        self.proxy, self.store, self.mlflow, self.ca_file = proxy, store, mlflow, ca_file

    def run(self, *, store: str, mlflow: str, **more: str) -> "subprocess.CompletedProcess[str]":
        self.proxy.requests.clear()
        named = ("AWS_", "MLFLOW_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
        clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(named)}
        environment = {
            **clean,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_S3_ADDRESSING_STYLE": "path",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "CELEBDIT_RUN_ID": "proxy",
            "CELEBDIT_STORE": "s3://bucket/proxy",
            "AWS_ENDPOINT_URL": store,
            "MLFLOW_TRACKING_URI": mlflow,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.ca_file),
            **more,
        }
        command = [sys.executable, "-c", CODE]
        passed = child_environment("rank", environment)
        return subprocess.run(command, env=passed, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def surroundings(moto_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    with answering() as mlflow, tls_in_front_of(mlflow.address, tmp_path_factory.mktemp("authority")) as secure:
        mlflow.answer_with(VERSION)
        with forward_proxy({STORE: moto_endpoint, OUTSIDE: secure.url}) as proxy:
            yield Surroundings(proxy, moto_endpoint, secure.url, secure.ca_file)


def test_hosts_outside_are_reached_through_the_proxy_alone(surroundings: Surroundings) -> None:
    outside = {"store": f"http://{STORE}", "mlflow": f"https://{OUTSIDE}"}
    without = surroundings.run(**outside)
    assert without.returncode != 0, "nothing but the proxy knows these names"
    assert surroundings.proxy.requests == []
    proxies = {"HTTP_PROXY": surroundings.proxy.url, "HTTPS_PROXY": surroundings.proxy.url}
    through = surroundings.run(**outside, **proxies)
    assert through.stdout == "data 3.17.0\n", through.stderr
    assert {f"PUT {STORE}", f"GET {STORE}", f"CONNECT {OUTSIDE}:443"} <= set(surroundings.proxy.requests)


def test_servers_of_this_machine_are_not_asked_for_at_the_proxy(surroundings: Surroundings) -> None:
    proxies = {"HTTP_PROXY": surroundings.proxy.url, "HTTPS_PROXY": surroundings.proxy.url, "NO_PROXY": ".svc"}
    mixed = surroundings.run(store=surroundings.store, mlflow=f"https://{OUTSIDE}", **{**proxies, **_no_proxy(proxies)})
    assert mixed.stdout == "data 3.17.0\n", mixed.stderr
    assert surroundings.proxy.requests == [f"CONNECT {OUTSIDE}:443"], "and nothing for the store on 127.0.0.1"
    refused = surroundings.run(store=surroundings.store, mlflow=f"https://{OUTSIDE}", **proxies)
    assert refused.returncode != 0, "without that the proxy is asked for 127.0.0.1, which it does not reach"
    assert any("127.0.0.1" in request for request in surroundings.proxy.requests)
