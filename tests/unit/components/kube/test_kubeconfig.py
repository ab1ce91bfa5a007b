"""A kubeconfig that no client can use is bad input of one line, whatever is wrong with it."""

from pathlib import Path

import pytest
from celebdit_testing.http_server import answering
from celebdit_testing.tls import tls_proxy

from components.errors import BadInput
from components.kube.client import Cluster

CONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: {server}}}}}]
contexts: {contexts}
current-context: x
users: [{{name: u, user: {{token: "{token}"}}}}]
"""
CONTEXTS = "[{name: x, context: {cluster: c, user: u}}]"

FILES = {
    "nothing": b"",
    "a list": b"[1, 2]",
    "a text": b"x",
    "no YAML": b"a: [",
    "not UTF-8": b"\xff\xfe",
    "no contexts": CONFIG.format(server="https://127.0.0.1:9", contexts="null", token="a").encode(),
    "contexts of another kind": CONFIG.format(server="https://127.0.0.1:9", contexts="3", token="a").encode(),
    "a server that is a number": CONFIG.format(server="3", contexts=CONTEXTS, token="a").encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_kubeconfig_is_bad_input(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(FILES[kind])
    with pytest.raises(BadInput, match="no Kubernetes cluster is configured here") as refused:
        Cluster.connect({"KUBECONFIG": str(tmp_path / "config")})
    assert "\n" not in refused.value.message


def test_a_good_kubeconfig_names_the_namespace(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.format(server="https://127.0.0.1:9", contexts=CONTEXTS, token="a"))
    assert Cluster.connect({"KUBECONFIG": str(tmp_path / "config")}).namespace == "default"


_NO_ADDRESSES = ["3", "kube.example:6443", "https://", "ftp://kube.example", "https://kube.example:port", "'https://a b'", "''"]


@pytest.mark.parametrize("server", _NO_ADDRESSES)
def test_a_server_that_is_no_address_is_bad_input_and_no_outage(server: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.format(server=server, contexts=CONTEXTS, token="a"))
    with pytest.raises(BadInput, match=r"is not an http or https address|no Kubernetes cluster is configured here"):
        Cluster.connect({"KUBECONFIG": str(tmp_path / "config")})


def refusal(folder: Path, server: str, token: str = "a") -> BadInput:
    """The error of the first request, which no pause comes before."""
    (folder / "config").write_text(CONFIG.format(server=server, contexts=CONTEXTS, token=token))
    cluster = Cluster(Cluster.connect({"KUBECONFIG": str(folder / "config")}).api, "default", sleep=no_waiting)
    with pytest.raises(BadInput) as refused:
        cluster.read("secrets", "a")
    return refused.value


def no_waiting(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s")


def test_a_certificate_that_cannot_be_verified_is_no_outage(tmp_path: Path) -> None:
    with answering() as server, tls_proxy(server.address, tmp_path) as (address, _):
        assert "its certificate cannot be verified" in refusal(tmp_path, address).message
        damaged = refusal(tmp_path, f"{address}, certificate-authority-data: YWJj")
        assert "the certificates to verify it with cannot be read" in damaged.message
        plain = refusal(tmp_path, server.address.replace("http:", "https:"))
        assert "it does not speak TLS" in plain.message
        assert not server.requests


@pytest.mark.parametrize("token", ["canary-1\\ncanary-2", "canary-€"])
def test_a_token_that_no_header_can_hold_is_named_and_not_shown(token: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, "http://127.0.0.1:9", token)
    assert "a header cannot hold its token" in error.message
    assert "canary" not in f"{error.message} {error.hint} {error.__cause__}"


def test_a_socks_proxy_for_all_else_stops_no_command_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl (Go) reads HTTPS_PROXY and NO_PROXY, and no ALL_PROXY."""
    for name in ("HTTPS_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy.example:1080")
    (tmp_path / "config").write_text(CONFIG.format(server="https://kube.example", contexts=CONTEXTS, token="a"))
    assert Cluster.connect({"KUBECONFIG": str(tmp_path / "config")}).namespace == "default"
