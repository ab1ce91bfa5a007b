"""What the doctor says of object storage that is set up wrongly, each fault by a proxy in front of a real server."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from celebdit_testing.faults import Answer, Proxy, fault_proxy, refusal
from celebdit_testing.steps import step_context
from celebdit_testing.tls import tls_proxy

from components.errors import BadInput
from components.preflight.preflight import run
from components.resources import ResourcesConfig
from components.storage import connect
from pipeline.cli import main
from pipeline.doctor.checks import run_check
from pipeline.doctor.servers import check_storage, check_store

Rule = Callable[[str, str, Mapping[str, str]], Answer | None]


def always(*named: Any, **more: Any) -> Rule:
    return lambda method, path, headers: refusal(*named, **more)


def listing_refused(method: str, path: str, headers: object) -> Answer | None:
    return refusal(403, "AccessDenied", "Access Denied") if "list-type=2" in path else None


def put_refused(method: str, path: str, headers: object) -> Answer | None:
    message = "User: arn:aws:iam::1:user/u is not authorized to perform: s3:PutObject on resource: r"
    return refusal(403, "AccessDenied", message) if method == "PUT" else None


def wrong_clock(method: str, path: str, headers: object) -> Answer | None:
    return refusal(403, "RequestTimeTooSkewed", Date=formatdate(time.time() + 7200, usegmt=True))


FAULTS: dict[str, tuple[Rule, str, str]] = {
    "region": (always(301, "PermanentRedirect", region="eu-west-1"), "bucket bucket is in region eu-west-1", "set AWS_REGION=eu-west-1"),
    "header": (always(400, "AuthorizationHeaderMalformed", region="eu-west-1"), "region eu-west-1", "set AWS_REGION=eu-west-1"),
    "clock": (wrong_clock, "120 minutes behind", "set the clock"),
    "expired": (always(400, "ExpiredToken"), "ExpiredToken", "get new credentials"),
    "key id": (always(403, "InvalidAccessKeyId"), "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
    "secret": (always(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    "bucket": (always(404, "NoSuchBucket"), "NoSuchBucket", "CELEBDIT_STORE"),
    "list": (listing_refused, "the right s3:ListBucket is missing", "grant the right"),
    "put": (put_refused, "the right s3:PutObject is missing", "grant the right"),
    "key of KMS": (always(400, "KMS.DisabledException"), "KMS.DisabledException", "CELEBDIT_S3_KMS_KEY_ID"),
    "login page": (lambda method, path, headers: (302, [("Location", "http://login.example")], b""), "302", "login page"),
    "outage": (always(503, "SlowDown"), "503 SlowDown", "run it again"),
}


@pytest.fixture(scope="module")
def proxy(moto_endpoint: str) -> Iterator[Proxy]:
    with fault_proxy(moto_endpoint) as running:
        yield running


@pytest.fixture
def set_up(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A shell that uses its own servers; the doctor waits for an outage for a moment only."""
    for name, value in {"CELEBDIT_STORE": "s3://bucket/doctor", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setattr("pipeline.doctor.servers._TIMEOUT_S", 1.0)
    yield proxy
    proxy.rule = Proxy().rule


def diagnose(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The check of storage, and what was printed."""
    with pytest.raises(SystemExit):
        main(["doctor", "--home", str(folder), "--json"])
    out, err = capsys.readouterr()
    (check,) = [check for check in json.loads(out)["checks"] if check["name"] == "storage"]
    return check, err


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_and_preflight_name_the_fault_and_the_next_action(fault: str, set_up: Proxy, tmp_path: Path) -> None:
    rule, message, fix = FAULTS[fault]
    set_up.requests.clear()
    set_up.rule = rule
    (check,) = run_check("storage", lambda: check_store(set_up.endpoint, "s3://bucket/doctor", whose="these credentials"))
    assert set_up.requests
    assert (check.state, message in check.found, fix in str(check.fix)) == ("fail", True, True), check
    if fault == "outage":
        return
    context = step_context("preflight", tmp_path, "s3://bucket/doctor", endpoint=set_up.endpoint)
    assert context.settings.storage_deadline_s == 300
    began_s = time.monotonic()
    with pytest.raises(BadInput, match=message) as refused:
        run(ResourcesConfig(), None, context)
    assert fix in str(refused.value.hint)
    assert time.monotonic() - began_s < 60


def test_the_command_prints_the_fault_and_the_next_action(set_up: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_up.rule = FAULTS["region"][0]
    check, err = diagnose(tmp_path, capsys)
    assert check["fix"] == "set AWS_REGION=eu-west-1"
    assert "FAIL     storage     object storage refuses s3://bucket/doctor: PermanentRedirect" in err
    assert "-> set AWS_REGION=eu-west-1" in err


def test_the_doctor_says_what_a_good_store_does(set_up: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check, _ = diagnose(tmp_path, capsys)
    assert check["state"] == "ok"
    for text in ("can write and read s3://bucket/doctor", "no versions are kept", "no rule removes incomplete uploads"):
        assert text in check["found"]
    listed = connect(set_up.endpoint).client.list_objects_v2(Bucket="bucket", Prefix="doctor/")
    assert listed["KeyCount"] == 0, "the doctor left something"


def test_a_certificate_of_a_private_authority_is_named(
    set_up: Proxy, moto_endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_proxy(moto_endpoint, tmp_path) as (endpoint, authority):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        check, _ = diagnose(tmp_path, capsys)
        assert check["state"] == "fail"
        assert "CERTIFICATE_VERIFY_FAILED" in check["found"]
        assert "AWS_CA_BUNDLE" in check["fix"]
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        assert (trusted := diagnose(tmp_path, capsys)[0])["state"] == "ok", trusted


def test_the_steps_credentials_are_not_mixed_with_those_of_the_shell(set_up: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell has a token and a profile of its own, which boto3 would use with the keys of the steps."""
    seen: list[str] = []

    def rule(method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        named = {name.lower(): value for name, value in headers.items()}
        seen.append(named["authorization"])
        return refusal(400, "InvalidToken") if "x-amz-security-token" in named else None

    set_up.rule = rule
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-shell")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    settings = {"CELEBDIT_STORE": "s3://bucket/steps", "AWS_ACCESS_KEY_ID": "of-the-steps", "AWS_SECRET_ACCESS_KEY": "secret"}
    check = check_storage({**settings, "AWS_REGION": "eu-west-3", "CELEBDIT_S3_ENCRYPTION": "AES256"})
    assert check.state == "ok"
    assert seen
    assert all("Credential=of-the-steps/" in line and "/eu-west-3/s3/" in line for line in seen)
    assert (os.environ["AWS_SESSION_TOKEN"], os.environ["AWS_PROFILE"], "CELEBDIT_S3_ENCRYPTION" in os.environ) == (
        "token-of-the-shell",
        "no-such-profile",
        False,
    )
