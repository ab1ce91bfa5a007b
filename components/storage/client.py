"""Connects to a store: endpoint, region, addressing style, time limits, and what every request asks of the store.

Promises: makes no request to the store; credentials come from boto3's chain. Checksums beyond what an operation requires are left out,
because many S3-compatible stores reject them (boto3 >= 1.36 adds them); uploads are checked in `upload.py` instead.
"""

import functools
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

from components.address import is_server_url
from components.errors import BadInput
from components.storage.addressing import ADDRESSING, region_of_environment
from components.storage.credentials import ChainCredentials, ChainResolver, configuration_error
from components.storage.parameters import add_parameters, request_parameters
from components.storage.store import ObjectStore

_DEFAULT_REGION = "us-east-1"
Style = Literal["path", "virtual", "auto"]


def connect(endpoint: str | None, *, deadline_s: float = 300.0, read_timeout_s: float = 60.0, disk: Path | None = None) -> ObjectStore:
    """Return a store client for `endpoint` (None: AWS), with credentials from the environment.

    `disk` is the folder in which a server on this machine keeps its objects: such a server does not say that its disk is full.

    Raises:
        BadInput: if the endpoint is not a URL, or AWS_S3_ADDRESSING_STYLE is not a style.
    """
    if endpoint and (not is_server_url(endpoint) or "?" in endpoint or "#" in endpoint):
        raise _not_a_url()
    style = os.environ.get(ADDRESSING) or ("path" if endpoint and _is_single_host(endpoint) else "auto")
    if style not in ("path", "virtual", "auto"):
        raise BadInput(f"{ADDRESSING} is {style!r}", hint="set it to path, virtual or auto")
    return _connect(endpoint, cast(Style, style), deadline_s, read_timeout_s, disk)


def prepare_clients() -> None:
    """Read what all clients of a process share, before the processes that use them are forked."""
    _connect("http://127.0.0.1", "path", 1.0, 1.0, None)


def _connect(endpoint: str | None, style: Style, deadline_s: float, read_timeout_s: float, disk: Path | None) -> ObjectStore:
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
    try:
        session = botocore.session.Session()
        session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
        region = region_of_environment() or session.get_config_variable("region") or _DEFAULT_REGION
        session.register_component("credential_provider", ChainResolver(region))
        client = boto3.session.Session(botocore_session=session).client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
            raise _not_a_url() from error
        raise configuration_error(error) or error from error
    client.meta.events.register("before-call.s3.HeadBucket", _do_not_redirect)
    add_parameters(client, request_parameters())
    other: Style = "virtual" if style == "path" else "path"
    return ObjectStore(
        client,
        credentials=cast(ChainCredentials, session.get_credentials()),
        addressing=style,
        other_style=lambda: _connect(endpoint, other, min(deadline_s, 5.0), read_timeout_s, disk),
        deadline_s=deadline_s,
        disk=disk,
    )


def _not_a_url() -> BadInput:
    return BadInput("AWS_ENDPOINT_URL is not a URL of a server", hint="write it like http://host:9000 or https://host")


@functools.cache
def _descriptions(folder: str | None) -> Loader:
    """Return botocore's descriptions of services, which all clients of a process share: each one would parse 0.1 s of JSON again."""
    return create_loader(folder)


def _do_not_redirect(context: dict[str, dict[str, object]], **_: object) -> None:
    """Keep botocore from following a redirection of HEAD for a bucket.

    That is the request by which it looks for a bucket's region: where every answer is a redirection, as of a login page, it would ask
    itself until its stack ends (seen in botocore 1.44).
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _is_single_host(endpoint: str) -> bool:
    """Return whether buckets cannot be subdomains of the endpoint's host: an IP address or a name without dots or of a cluster service."""
    host = urlsplit(endpoint).hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return "." not in host or ".svc" in host or host.endswith(".local")
    return True
