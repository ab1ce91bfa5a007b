"""Kubeflow Pipelines and a container registry outside, which only a forward proxy reaches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.forward_proxy import ForwardProxy, forward_proxy
from celebdit_testing.image_registry import image_registry
from celebdit_testing.kfp_server import kfp_server
from celebdit_testing.private_ca import OUTSIDE, tls_in_front_of

from components.errors import BadInput
from components.serving.oci_reference import ImageReference
from components.serving.oci_registry import ImageRegistry
from components.system.retry import RetryPolicy
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience

KFP = "kfp.outside.example"


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
