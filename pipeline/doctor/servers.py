"""Check the servers that the steps use, and the registry that the nodes pull images from.

Promises: a server that is reachable only inside the cluster is reported as unknown, not as a failure.
"""

import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import urllib3

from components import deployment as names
from components.address import split_url
from components.command_settings import CommandSettings
from components.environment import CREDENTIALS, MLFLOW, MLFLOW_USER, S3_ENDPOINT, S3_ENDPOINT_FIRST, STORE, TRACKING_TOKEN
from components.errors import BadInput
from components.storage import StoreUri, connect
from components.storage.probe import probe
from pipeline.doctor.checks import Check, State
from pipeline.images import Images

_MANIFEST_TYPES = ", ".join(
    f"application/vnd.{kind}+json" for kind in ("oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2")
)
_TIMEOUT_S = 10.0


def check_storage(settings: Mapping[str, str]) -> Check:
    """Check that the steps' credentials may write to and read from the store."""
    endpoint = CommandSettings.from_environment().s3_endpoint or settings.get(S3_ENDPOINT_FIRST) or settings.get(S3_ENDPOINT)
    if STORE not in settings or not all(settings.get(key) for key in CREDENTIALS):
        return Check("storage", "unknown", "location or credentials are missing", "see the checks above")
    if _is_inside(endpoint):
        return Check(
            "storage",
            "unknown",
            f"{endpoint} cannot be reached from here",
            f"port-forward it and set {S3_ENDPOINT}; the preflight step checks it too",
        )
    with _credentials_of_steps(settings):
        probe(connect(endpoint, deadline_s=_TIMEOUT_S), StoreUri.parse(settings[STORE]))
    return Check("storage", "ok", f"the credentials of the steps can write and read {settings[STORE]}")


def check_mlflow(settings: Mapping[str, str]) -> Check:
    """Check that MLflow accepts the credentials of the steps and refuses anonymous requests."""
    uri = (CommandSettings.from_environment().mlflow_uri or settings.get(MLFLOW) or "").rstrip("/")
    if not uri:
        return Check("mlflow", "unknown", "its URL is missing", "see the checks above")
    if _is_inside(uri):
        fix = f"kubectl -n celebdit port-forward svc/mlflow 5000 and set {MLFLOW}=http://localhost:5000; the preflight step checks it too"
        return Check("mlflow", "unknown", f"{uri} cannot be reached from here", fix)
    return Check("mlflow", *_mlflow_result(uri, anonymous=_mlflow_status(uri, {}), authenticated=_mlflow_status(uri, _login(settings))))


def _login(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with which MLflow's client logs in: a user name and password win over a token."""
    user, password = (settings.get(key, "") for key in MLFLOW_USER)
    token = settings.get(TRACKING_TOKEN)
    if token and not (user and password):
        return {"authorization": f"Bearer {token}"}
    return dict(urllib3.make_headers(basic_auth=f"{user}:{password}"))


def _mlflow_result(uri: str, *, anonymous: int, authenticated: int) -> tuple[State, str, str | None]:
    """Return the result for MLflow from the status codes of an anonymous and an authenticated request."""
    if authenticated == 401:
        return (
            "fail",
            f"{uri} does not accept the credentials of {names.MLFLOW_SECRET}",
            "write the credentials of a user of MLflow into it",
        )
    if authenticated == 403:
        return "fail", f"{uri} answers 403", "if the response is Invalid Host header, add this host to MLFLOW_HOSTS (servers/mlflow.yaml)"
    if authenticated != 200:
        return "fail", f"{uri} answers HTTP {authenticated}", "see its log: kubectl -n celebdit logs deploy/mlflow"
    if anonymous == 200:
        return "fail", f"{uri} accepts anonymous requests", "start it with authentication, as docker/kubernetes/servers does"
    return "ok", f"{uri} requires authentication and accepts the credentials of the steps", None


def _mlflow_status(uri: str, headers: Mapping[str, str]) -> int:
    url = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        return int(urllib3.request("GET", url, headers=headers, timeout=_TIMEOUT_S, retries=False).status)
    except urllib3.exceptions.HTTPError as error:
        raise BadInput(f"{uri} cannot be reached: {type(error).__name__}", hint="start it, or port-forward it") from error


def check_images(images: Images) -> list[Check]:
    """Check that the nodes can pull both images."""
    return [Check("images", *_pull_result(reference)) for reference in (images.cpu, images.gpu)]


def _pull_result(reference: str) -> tuple[State, str, str | None]:
    """Request the manifest by digest from the registry, as a node would, without credentials."""
    repository, _, digest = reference.partition("@")
    host, _, path = repository.partition("/")
    if host == "localhost" or not path or ("." not in host and ":" not in host):
        return "fail", f"{repository} is not in a registry", "push it: make images REGISTRY=... PUSH=1"
    scheme = "http" if host.startswith(("127.0.0.1", "localhost:")) else "https"
    url = f"{scheme}://{host}/v2/{path}/manifests/{digest}"
    try:
        status = urllib3.request("HEAD", url, headers={"Accept": _MANIFEST_TYPES}, timeout=_TIMEOUT_S, retries=False).status
    except urllib3.exceptions.HTTPError:
        return "unknown", f"{host} cannot be reached from here", "the nodes may still reach it: see the events of a pod"
    if status == 200:
        return "ok", f"{repository}@{digest[:19]} can be pulled from {host} without credentials", None
    if status in (401, 403):
        patch = '{"imagePullSecrets": [{"name": "..."}]}'
        fix = f"add a pull secret to {names.SERVICE_ACCOUNT}: kubectl patch serviceaccount {names.SERVICE_ACCOUNT} -p '{patch}'"
        return "unknown", f"{host} requires credentials for {path}, and the nodes need them too", fix
    return "fail", f"{host} does not have {path}@{digest[:19]} (HTTP {status})", "push it: make images REGISTRY=... PUSH=1"


def _is_inside(address: str | None) -> bool:
    """Return whether the host of an address is a name of the cluster's internal DNS."""
    parts = split_url(address) if address else None
    return parts is not None and bool(re.search(r"\.svc(\.cluster\.local)?$", parts.hostname or ""))


@contextmanager
def _credentials_of_steps(settings: Mapping[str, str]) -> Any:
    """Set the credentials of the steps in the environment for the block, where boto3 reads them."""
    used = (*names.SECRET_KEYS[names.S3_SECRET], "AWS_REGION", "AWS_S3_ADDRESSING_STYLE")
    before = {key: os.environ.pop(key, None) for key in used}
    os.environ.update({key: settings[key] for key in used if settings.get(key)})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
