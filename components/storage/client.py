"""Connects to a store: endpoint, addressing style, time limits. boto3 reads the credentials from the environment.

Promises: makes no request. Checksums beyond what an operation requires are left out, because many S3-compatible stores reject them
(boto3 >= 1.36 adds them); uploads are checked in `upload.py` instead.
"""

import os
from ipaddress import ip_address
from typing import Literal, cast
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from components.address import is_server_url
from components.errors import BadInput, first_line
from components.storage.probe import ADDRESSING
from components.storage.store import ObjectStore

Style = Literal["path", "virtual", "auto"]


def connect(endpoint: str | None, *, deadline_s: float = 300.0, read_timeout_s: float = 60.0) -> ObjectStore:
    """Return a store client for `endpoint` (None: AWS), with credentials from the environment.

    Raises:
        BadInput: if the endpoint is not a URL, or AWS_S3_ADDRESSING_STYLE is not a style.
    """
    if endpoint and not is_server_url(endpoint):
        raise BadInput("AWS_ENDPOINT_URL is not a URL", hint="write it like http://host:9000 or https://host")
    style = os.environ.get(ADDRESSING) or ("path" if endpoint and _is_single_host(endpoint) else "auto")
    if style not in ("path", "virtual", "auto"):
        raise BadInput(f"{ADDRESSING} is {style!r}", hint="set it to path, virtual or auto")
    return _connect(endpoint, cast(Style, style), deadline_s, read_timeout_s)


def _connect(endpoint: str | None, style: Style, deadline_s: float, read_timeout_s: float) -> ObjectStore:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": style},
        # One attempt per call: `ObjectStore` retries, with a deadline over all attempts.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=10,
        read_timeout=read_timeout_s,
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except ValueError as error:
        raise BadInput("AWS_ENDPOINT_URL is not a URL", hint="write it like http://host:9000 or https://host") from error
    except BotoCoreError as error:
        raise BadInput(f"no S3 client can be made: {first_line(error)}", hint="check the AWS_ variables and ~/.aws/config") from error
    other: Style = "virtual" if style == "path" else "path"
    return ObjectStore(
        client, addressing=style, other_style=lambda: _connect(endpoint, other, min(deadline_s, 5.0), read_timeout_s), deadline_s=deadline_s
    )


def _is_single_host(endpoint: str) -> bool:
    """Return whether buckets cannot be subdomains of the endpoint's host: an IP address or a name without dots or of a cluster service."""
    host = urlsplit(endpoint).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return "." not in host or ".svc" in host or host.endswith(".local")
    return True
