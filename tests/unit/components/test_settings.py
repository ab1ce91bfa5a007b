"""Settings from the environment."""

from pathlib import Path

import pytest

from components.errors import BadInput
from components.settings import Settings, missing_credentials

ENVIRONMENT = {"CELEBDIT_STORE": "s3://bucket/pre/fix", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "CELEBDIT_RUN_ID": "r1"}


def test_settings_are_read_from_the_environment() -> None:
    settings = Settings.from_environment({**ENVIRONMENT, "AWS_ENDPOINT_URL": "http://s3:9000", "CELEBDIT_WORK_DIR": "/scratch"})
    assert settings.store_uri == "s3://bucket/pre/fix"
    assert settings.s3_endpoint == "http://s3:9000"
    assert settings.work_dir == Path("/scratch")
    assert settings.experiment == "celebdit"


@pytest.mark.parametrize(("name", "stored"), [("x" * 256, "x" * 256), (" faces 2 ", "faces 2"), ("größe", "größe"), ("  ", "celebdit")])
def test_the_experiment_may_have_any_name_that_mlflow_can_store(name: str, stored: str) -> None:
    assert Settings.from_environment({**ENVIRONMENT, "CELEBDIT_EXPERIMENT": name}).experiment == stored


@pytest.mark.parametrize("name", ["x" * 257, "x" * 700, "a\nb", "a\x00b", "a\udcff"])
def test_an_experiment_that_mlflow_cannot_store_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="CELEBDIT_EXPERIMENT") as refused:
        Settings.from_environment({**ENVIRONMENT, "CELEBDIT_EXPERIMENT": name})
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_setting_is_named(name: str, value: str | None) -> None:
    environment = {key: text for key, text in ENVIRONMENT.items() if key != name} | ({} if value is None else {name: value})
    with pytest.raises(BadInput, match=name):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    "store", ["s3://", "bucket/x", "s3://B/x", "s3://bucket/../x", "file:///x", "s3://key:secret@bucket/x", "s3://bucket/a b"]
)
def test_a_store_that_is_no_s3_location_is_refused_without_showing_it(store: str) -> None:
    with pytest.raises(BadInput) as raised:
        Settings.from_environment({**ENVIRONMENT, "CELEBDIT_STORE": store})
    assert "secret" not in raised.value.message


def test_credentials_inside_the_mlflow_address_are_refused_without_showing_them() -> None:
    with pytest.raises(BadInput) as raised:
        Settings.from_environment({**ENVIRONMENT, "MLFLOW_TRACKING_URI": "http://me:hunter22@host"})
    assert "hunter22" not in raised.value.message + str(raised.value.hint)


def test_missing_credentials_are_named_unless_another_provider_is_configured() -> None:
    assert missing_credentials({}) == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert missing_credentials({"AWS_ACCESS_KEY_ID": "a"}) == ["AWS_SECRET_ACCESS_KEY"]
    assert missing_credentials({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}) == []


@pytest.mark.parametrize("password", ["p/w", "pw", "p@w", "p:w", "p/w@x"])
@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_with_a_password_is_refused_without_showing_it(name: str, password: str) -> None:
    with pytest.raises(BadInput, match=f"{name} contains credentials") as refused:
        Settings.from_environment({**ENVIRONMENT, name: f"http://user:{password}@host:9000"})
    assert password not in refused.value.message.replace("MLFLOW_TRACKING_URI", "") + str(refused.value.hint)


@pytest.mark.parametrize("registry", ["", "http://127.0.0.1:5000", "http://127.0.0.1:5000/"])
def test_a_registry_that_is_the_tracking_server_changes_nothing(registry: str) -> None:
    assert Settings.from_environment({**ENVIRONMENT, "MLFLOW_REGISTRY_URI": registry}) == Settings.from_environment(ENVIRONMENT)


def test_another_registry_is_refused_by_commands_and_steps() -> None:
    for in_run in (True, False):
        with pytest.raises(BadInput, match="MLFLOW_REGISTRY_URI is another server than MLFLOW_TRACKING_URI"):
            Settings.from_environment({**ENVIRONMENT, "MLFLOW_REGISTRY_URI": "http://127.0.0.1:5001"}, in_run=in_run)
