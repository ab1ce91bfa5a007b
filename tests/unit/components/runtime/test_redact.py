"""Masking of secrets."""

import json
from urllib.parse import quote, quote_plus

import pytest

from components.runtime.redact import redactor


@pytest.mark.parametrize(
    "text",
    [
        "failed with key s3cr3t-value-1 in it",
        "http://user:s3cr3t-value-1@host/path",
        "http://user:other-password@host/path",
        "Authorization: Bearer abcdef0123456789",
        "Credential=AKIDEXAMPLE/20261123/us-east-1/s3/aws4_request, Signature=deadbeef0123",
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str) -> None:
    masked = redactor({"AWS_SECRET_ACCESS_KEY": "s3cr3t-value-1", "PATH": "/usr/bin"})(text)
    for secret in ("s3cr3t-value-1", "other-password", "abcdef0123456789", "AKIDEXAMPLE", "deadbeef0123"):
        assert secret not in masked
    assert "***" in masked


@pytest.mark.parametrize("password", ["p/w", "a/b/c", "p@w", "p:w", "p/w@x", "%2Fp", "1234/", "?p=w", "#pw", "p\\w"])
@pytest.mark.parametrize("user", ["user", "", "u.s-er"])
def test_a_password_in_an_address_is_masked_whatever_it_holds(user: str, password: str) -> None:
    masked = redactor({})(f'cannot reach "http://{user}:{password}@host:5000/x" now, ask ops@example.org')
    assert masked == 'cannot reach "http://***@host:5000/x" now, ask ops@example.org'


def test_an_event_stays_json_when_an_address_in_it_is_masked() -> None:
    facts = {"url": "http://127.0.0.1:5000/#/runs", "other": "http://user:p/w@host", "mail": "somebody@example.org"}
    for separators in ((", ", ": "), (",", ":")):
        masked_facts = json.loads(redactor({})(json.dumps(facts, separators=separators)))
        assert masked_facts == {**facts, "other": "http://***@host"}


@pytest.mark.parametrize(
    "name", ["CELEBDIT_KFP_COOKIES", "CELEBDIT_KFP_TOKEN", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "RCLONE_AUTH_KEY"]
)
def test_every_secret_that_we_read_from_the_environment_is_masked(name: str) -> None:
    assert redactor({name: "session=canary-0123"})("refused Cookie: session=canary-0123; path=/") == "refused Cookie: ***; path=/"


def test_each_cookie_is_masked_separately() -> None:
    redact = redactor({"CELEBDIT_KFP_COOKIES": "session=canary-0123; token=canary-4567"})
    assert redact("session canary-0123 has expired, token=canary-4567 not") == "session *** has expired, token=*** not"


def test_what_only_points_at_a_secret_is_not_masked() -> None:
    environ = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "CELEBDIT_KFP_CA_FILE": "/etc/ca.pem", "KAGGLE_USERNAME": "somebody"}
    text = "/var/run/token /etc/ca.pem somebody"
    assert redactor(environ)(text) == text


def test_ordinary_text_is_not_masked() -> None:
    redact = redactor({"AWS_SECRET_ACCESS_KEY": "s3cr3t-value-1", "PATH": "/usr/bin", "SHORT_TOKEN": "abc"})
    assert redact("s3://bucket/main abc /usr/bin") == "s3://bucket/main abc /usr/bin"


@pytest.mark.parametrize("secret", ["canary-secret\n", "canary-1\ncanary-2", "canary-€-'\"", "canary/+ä@", " canary-1 "])
def test_a_secret_with_odd_characters_is_masked_however_an_error_quotes_it(secret: str) -> None:
    redact = redactor({"MLFLOW_TRACKING_TOKEN": secret})
    for text in (
        secret,
        secret.strip(),
        repr(secret),
        repr(secret.encode()),
        json.dumps(secret),
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        quote(secret, safe="").replace("%2B", "%2b").replace("%C3%A4", "%c3%a4").replace("%0A", "%0a").replace("%2F", "%2f"),
        *secret.split("\n"),
    ):
        assert "canary" not in redact(f"the header {text} is refused")
