"""Connections to Kubeflow Pipelines that no waiting makes: they end at once, name what is wrong, and show no credential."""

from pathlib import Path

import pytest
from celebdit_testing.kfp_server import FakeKfp
from celebdit_testing.tls import tls_proxy

from components.errors import BadInput
from pipeline.kubeflow import KfpAddress, Kubeflow, Patience

DAMAGED = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


def no_waiting(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s")


def test_a_certificate_of_an_unknown_authority_is_no_outage_and_is_accepted_with_its_authority(server: FakeKfp, tmp_path: Path) -> None:
    with tls_proxy(server.url, tmp_path) as (address, authority):
        with pytest.raises(BadInput, match=f"{address} cannot be used: its certificate cannot be verified") as refused:
            Kubeflow(KfpAddress(address, None), Patience(sleep=no_waiting)).multi_user()
        assert "CELEBDIT_KFP_CA_FILE" in str(refused.value.hint)
        assert not server.requests
        assert Kubeflow(KfpAddress(address, None, ca_file=str(authority)), Patience(sleep=no_waiting)).multi_user() is False


def test_a_server_without_tls_is_named(server: FakeKfp) -> None:
    address = server.url.replace("http:", "https:")
    with pytest.raises(BadInput, match="it does not speak TLS"):
        Kubeflow(KfpAddress(address, None), Patience(sleep=no_waiting)).multi_user()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), ("", "no certificate or crl found"), (DAMAGED, "PEM lib"), ("folder", "Is a directory")],
)
def test_a_file_of_authorities_that_cannot_be_read_is_refused_before_any_request(content: str | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_text(content)
    with pytest.raises(BadInput, match=f"CELEBDIT_KFP_CA_FILE .*authority.pem cannot be read: .*{reason}") as refused:
        Kubeflow(KfpAddress("https://127.0.0.1:9", None, ca_file=str(file)), Patience(sleep=no_waiting))
    assert "_ssl.c" not in refused.value.message


@pytest.mark.parametrize("field", ["token", "cookies"])
@pytest.mark.parametrize("value", ["canary-1\ncanary-2", "canary-€"])
def test_a_credential_that_no_header_can_hold_is_named_and_not_shown(field: str, value: str, server: FakeKfp) -> None:
    with pytest.raises(BadInput, match="a header cannot hold CELEBDIT_KFP_TOKEN or CELEBDIT_KFP_COOKIES") as refused:
        Kubeflow(KfpAddress(server.url, None, **{field: value}), Patience(sleep=no_waiting)).multi_user()
    assert "canary" not in f"{refused.value} {refused.value.hint} {refused.value.__cause__}"
    assert not server.requests
