"""Kubeflow Pipelines, a cluster and a container registry outside, which only a forward proxy reaches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.forward_proxy import ForwardProxy, forward_proxy
from celebdit_testing.http_server import Handler, serving
from celebdit_testing.image_registry import image_registry
from celebdit_testing.kfp_server import kfp_server
from celebdit_testing.private_ca import OUTSIDE, tls_in_front_of

from components.errors import BadInput, TemporaryFailure
from components.kube.client import Cluster
from components.serving.oci_reference import ImageReference
from components.serving.oci_registry import ImageRegistry
from components.system.retry import RetryPolicy
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience

KFP = "kfp.outside.example"
_CLUSTER = "kube.outside.example"
_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{server}"}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
users: [{{name: u, user: {{token: a}}}}]
"""


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with kfp_server() as kfp, image_registry() as registry, tls_in_front_of(registry.url, tmp_path) as secure:
        monkeypatch.setenv("SSL_CERT_FILE", str(secure.ca_file))
        with forward_proxy({KFP: kfp.url, OUTSIDE: secure.url}) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            yield proxy


def test_kubeflow_pipelines_is_reached_through_the_proxy(proxy: ForwardProxy) -> None:
    kubeflow = Kubeflow(KfpAddress(f"http://{KFP}", None), Patience(deadline_s=1.0))
    assert kubeflow.find_experiment("faces") is None
    assert f"GET {KFP}" in proxy.requests


def test_a_registry_is_reached_through_the_proxy(proxy: ForwardProxy) -> None:
    registry = ImageRegistry(ImageReference.parse(f"{OUTSIDE}/team/faces:1"), None, RetryPolicy(deadline_s=0.0))
    with pytest.raises(BadInput, match="HTTP 404"):
        registry.base()
    assert f"CONNECT {OUTSIDE}:443" in proxy.requests


def test_a_cluster_is_reached_through_the_proxy_and_one_on_this_machine_without(
    tmp_path: Path, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(200, {"items": [{"metadata": {"name": "node-1"}}]})

    def nodes(server: str) -> list[str]:
        path = tmp_path / "config"
        path.write_text(_KUBECONFIG.format(server=server))
        return [str(node["metadata"]["name"]) for node in Cluster.connect({"KUBECONFIG": str(path)}, deadline_s=0.0).nodes()]

    with serving(Api) as address, forward_proxy({_CLUSTER: address}) as forward:
        monkeypatch.setenv("HTTP_PROXY", forward.url.replace("://", "://me:secret@"))
        assert nodes(f"http://{_CLUSTER}") == ["node-1"]
        assert forward.requests == [f"GET {_CLUSTER}"]
        assert nodes(address) == ["node-1"]
        monkeypatch.setenv("NO_PROXY", ".outside.example")
        with pytest.raises(TemporaryFailure, match="cannot be reached"):
            nodes(f"http://{_CLUSTER}")
        assert len(forward.requests) == 1


def test_the_proxy_of_a_kubeconfig_comes_before_that_of_the_environment(
    tmp_path: Path, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api(Handler):
        def do_GET(self) -> None:  # noqa: N802
            self.answer(200, {"items": [{"metadata": {"name": self.headers.get("proxy-authorization", "no login")}}]})

    def connect(proxy_url: str, *, context: str | None = None) -> Cluster:
        """The cluster of two files, of which the second has the context `other`, with a proxy of its own that does not work."""
        paths = [tmp_path / "config", tmp_path / "other"]
        text = _KUBECONFIG.format(server=f"http://{_CLUSTER}")
        paths[0].write_text(text.replace("{server:", f'{{proxy-url: "{proxy_url}", server:'))
        paths[1].write_text(
            text.replace("name: c,", "name: d,")
            .replace("cluster: c,", "namespace: theirs, cluster: d,")
            .replace("name: x,", "name: other,")
        )
        paths[1].write_text(paths[1].read_text().replace("{server:", '{proxy-url: "http://127.0.0.1:1", server:'))
        return Cluster.connect({"KUBECONFIG": ":".join(map(str, paths))}, deadline_s=0.0, context=context)

    with serving(Api) as address, forward_proxy({_CLUSTER: address}) as forward:
        monkeypatch.setenv("NO_PROXY", ".outside.example")  # which is about the proxy of the environment
        (node,) = connect(forward.url.replace("://", "://me:secret@")).nodes()
        assert node["metadata"]["name"] == "Basic bWU6c2VjcmV0"
        assert forward.requests == [f"GET {_CLUSTER}"]
        assert connect(forward.url).namespace == "default"
        other = connect(forward.url, context="other")
        assert other.namespace == "theirs"
        with pytest.raises(TemporaryFailure, match=r"the proxy before it fails: .*refused"):
            other.nodes()
    with pytest.raises(BadInput, match="the address of the proxy in proxy-url of the kubeconfig cannot be used") as refused:
        connect("socks5://me:secret@proxy.example:1080")
    assert "SOCKS is not supported" in str(refused.value.hint)
    assert "secret" not in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize("client", ["submit", "cluster"])
def test_a_proxy_that_does_not_speak_tls_is_named_and_not_the_server_behind_it(
    client: str, tmp_path: Path, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(_KUBECONFIG.format(server=f"https://{_CLUSTER}"))

    def request() -> None:
        if client == "submit":
            Kubeflow(KfpAddress(f"https://{KFP}", None), Patience(deadline_s=0.0)).find_experiment("faces")
        else:
            list(Cluster.connect({"KUBECONFIG": str(config)}, deadline_s=0.0).nodes())

    with serving(Handler) as plain:
        monkeypatch.setenv("HTTPS_PROXY", plain.replace("http:", "https:"))
        with pytest.raises(BadInput, match=r"the proxy before it fails: it does not speak TLS; check HTTP_PROXY, HTTPS_PROXY"):
            request()
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(TemporaryFailure, match=r"the proxy before it fails: .*refused"):
        request()
