"""A kubeconfig that no client can use is bad input of one line, whatever is wrong with it."""

from pathlib import Path

import pytest

from components.errors import BadInput
from components.kube.client import Cluster

CONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: {server}}}}}]
contexts: {contexts}
current-context: x
users: [{{name: u, user: {{token: a}}}}]
"""
CONTEXTS = "[{name: x, context: {cluster: c, user: u}}]"

FILES = {
    "nothing": b"",
    "a list": b"[1, 2]",
    "a text": b"x",
    "no YAML": b"a: [",
    "not UTF-8": b"\xff\xfe",
    "no contexts": CONFIG.format(server="https://127.0.0.1:9", contexts="null").encode(),
    "contexts of another kind": CONFIG.format(server="https://127.0.0.1:9", contexts="3").encode(),
    "a server that is a number": CONFIG.format(server="3", contexts=CONTEXTS).encode(),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_kubeconfig_is_bad_input(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(FILES[kind])
    with pytest.raises(BadInput, match="no Kubernetes cluster is configured here") as refused:
        Cluster.connect({"KUBECONFIG": str(tmp_path / "config")})
    assert "\n" not in refused.value.message


def test_a_good_kubeconfig_names_the_namespace(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.format(server="https://127.0.0.1:9", contexts=CONTEXTS))
    assert Cluster.connect({"KUBECONFIG": str(tmp_path / "config")}).namespace == "default"


_NO_ADDRESSES = ["3", "kube.example:6443", "https://", "ftp://kube.example", "https://kube.example:port", "'https://a b'", "''"]


@pytest.mark.parametrize("server", _NO_ADDRESSES)
def test_a_server_that_is_no_address_is_bad_input_and_no_outage(server: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(CONFIG.format(server=server, contexts=CONTEXTS))
    with pytest.raises(BadInput, match=r"is not an http or https address|no Kubernetes cluster is configured here"):
        Cluster.connect({"KUBECONFIG": str(tmp_path / "config")})
