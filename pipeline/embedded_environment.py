"""The environment of processes that use the embedded servers.

Promises: nothing of the shell's AWS_* and MLFLOW_* variables, AWS profiles, ~/.netrc and ~/.mlflow/credentials reaches them, and no proxy
stands between them and 127.0.0.1. What they need is in `Endpoints`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from components.environment import MLFLOW, OWN_SERVERS, STORE, TRACKING_TOKEN
from components.system.peers import OwnServers
from components.system.ports import LOOPBACK
from pipeline.server_commands import EMBEDDED_STORE, s3_environment

_FOREIGN = ("AWS_", "MLFLOW_")


def without_servers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without what leads to other servers or changes how clients talk to ours."""
    bending = bending_names(environ)
    return {name: value for name, value in environ.items() if name not in bending}


def bending_names(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that lead to other servers or change how clients talk to ours."""
    return [name for name in environ if name.startswith(_FOREIGN)]


def client_environment(s3_url: str, secret: str, mlflow_url: str, token: str) -> dict[str, str]:
    """Return the variables with which boto3, MLflow and the steps reach the embedded servers."""
    return {
        **storage_environment(s3_url, secret),
        MLFLOW: mlflow_url,
        TRACKING_TOKEN: token,
        "NETRC": os.devnull,  # requests would send what it finds there instead of the token
        OWN_SERVERS: _own_servers(s3_url, mlflow_url),
        **_before_credentials_file(token),
    }


def storage_environment(s3_url: str, secret: str) -> dict[str, str]:
    """Return the variables with which boto3 reaches the embedded object storage alone."""
    return {
        **s3_environment(s3_url, secret),
        STORE: EMBEDDED_STORE,
        OWN_SERVERS: _own_servers(s3_url),
        **_no_proxy(os.environ),
    }


def _own_servers(*urls: str) -> str:
    return str(OwnServers.of_this_user(frozenset(map(_port, urls))))


def _port(url: str) -> int:
    return urlsplit(url).port or 80


def _before_credentials_file(token: str) -> dict[str, str]:
    """Return the token as a password too, if there is a file whose user name and password MLflow would prefer to a token."""
    if not Path("~/.mlflow/credentials").expanduser().exists():
        return {}
    return {"MLFLOW_TRACKING_USERNAME": "celebdit", "MLFLOW_TRACKING_PASSWORD": token}


def _no_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep proxies away from this machine, or nothing if no proxy is configured."""
    if not any(name.lower().endswith("_proxy") and value for name, value in environ.items()):
        return {}
    hosts = [host.strip() for host in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",") if host.strip()]
    if hosts != ["*"]:
        hosts += [host for host in (LOOPBACK, "localhost") if host not in hosts]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(hosts))
