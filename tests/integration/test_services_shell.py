"""A user's shell and files do not change the embedded servers, and their exports lead other programs to them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celebdit_testing.command import COMMAND, celebdit_here

from components.storage import StoreUri
from pipeline.services import Services
from pipeline.session import open_session

SHELL = {
    "proxies": dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9"),
    "proxies with exceptions": {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"},
    "another S3": {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
    "a profile": {"AWS_PROFILE": "nobody"},
    "a session": {"AWS_SESSION_TOKEN": "x" * 20},
    "other checksums": {"AWS_REQUEST_CHECKSUM_CALCULATION": "no-such-thing"},
    "another style": {"AWS_S3_ADDRESSING_STYLE": "virtual"},
    "another token": {"MLFLOW_TRACKING_TOKEN": "somebody-elses"},
    "a password": {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"},
    "an authentication": {"MLFLOW_TRACKING_AUTH": "no-such-plugin"},
    "a timeout": {"MLFLOW_HTTP_REQUEST_TIMEOUT": "abc"},
    "retries": {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "abc"},
    "a run": {"MLFLOW_RUN_ID": "abc"},
    "a registry": {"MLFLOW_REGISTRY_URI": "http://127.0.0.1:9"},
    "a workspace": {"MLFLOW_WORKSPACE": "elsewhere"},
}


@pytest.fixture
def shell() -> Iterator[None]:
    """The environment of this process, put back afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", SHELL)
def test_variables_of_the_shell_do_not_bend_the_embedded_servers(embedded: Services, shell: None, case: str) -> None:
    os.environ.update(SHELL[case])
    with open_session(embedded.home) as session:
        context = session.context(session.environment(run_id="shell-1"))
        run = context.tracking.pipeline_run()
        context.tracking.log_text(run.info.run_id, "x", "x.txt")
        assert context.tracking.read_artifact(run.info.run_id, "x.txt") == b"x"
        assert run.info.run_id != "abc"
        uri = StoreUri.parse(context.settings.store_uri) / "shell" / "x"
        context.store.put_bytes(uri, b"x")
        assert context.store.get_bytes(uri) == b"x"


def test_files_of_the_user_do_not_bend_the_embedded_servers(
    embedded: Services, shell: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        ".netrc": "default login me password secret\n",
        ".mlflow/credentials": "[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = secret\n",
        ".aws/config": "[default]\nendpoint_url = http://127.0.0.1:9\nregion = nowhere\n",
        ".aws/credentials": "[default]\naws_access_key_id = me\naws_secret_access_key = secret\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    test_variables_of_the_shell_do_not_bend_the_embedded_servers(embedded, None, "another S3")


def test_exports_lead_other_programs_to_the_servers(embedded: Services, tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text("""
import boto3, mlflow
print(mlflow.MlflowClient().search_experiments()[0].name)
print([bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]])
""")
    celebdit_env = shlex.join([*COMMAND, "services", "env", "--home", str(embedded.home)])
    script = f'eval "$({celebdit_env})" && exec {shlex.join([sys.executable, str(program)])}'
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    shell = {
        **kept,
        "AWS_PROFILE": "nobody",
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "x",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(["sh", "-c", script], env=shell, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "['celebdit', 'mlflow']" in done.stdout


def test_exports_of_servers_that_do_not_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = celebdit_here("services", "env", home=tmp_path / "home", capture=capsys)
    assert refused.code == 75
    assert refused.out == ""
    assert "not running" in refused.err


def test_a_shell_with_the_exports_still_shares_the_servers(embedded: Services, shell: None) -> None:
    os.environ.update(embedded.wait().environment)
    with open_session(embedded.home) as session:
        assert session.services is not None
        assert f"process {os.getpid()}" in embedded.users()
    del os.environ["CELEBDIT_STORE"]
    with open_session(embedded.home) as session:
        assert session.services is not None
