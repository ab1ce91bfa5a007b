"""The servers that the steps will talk to, and the registry that the nodes will pull from, as far as they can be reached from here.

Promises: what only the cluster's own network reaches is said to be unknown, not to be wrong.
"""

import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import urllib3

from components import deployment as names
from components.environment import MLFLOW, S3_ENDPOINT, STORE
from components.errors import BadInput
from components.settings import CommandSettings
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
    endpoint = CommandSettings.from_environment().s3_endpoint or settings.get(S3_ENDPOINT)
    if STORE not in settings or not all(settings.get(key) for key in names.SECRET_KEYS[names.S3_SECRET]):
        return Check("storage", "unknown", "its location or its credentials are missing", "see above")
    if _is_inside(endpoint):
        return Check(
            "storage",
            "unknown",
            f"{endpoint} cannot be reached from here",
            f"port-forward it and set {S3_ENDPOINT}; the preflight step looks too",
        )
    with _as_the_steps(settings):
        probe(connect(endpoint, deadline_s=_TIMEOUT_S), StoreUri.parse(settings[STORE]))
    return Check("storage", "ok", f"{settings[STORE]} can be written and read with the steps' credentials")


def check_mlflow(settings: Mapping[str, str]) -> Check:
    """Check that MLflow knows the steps' user and nobody else gets in."""
    uri = (CommandSettings.from_environment().mlflow_uri or settings.get(MLFLOW) or "").rstrip("/")
    if not uri:
        return Check("mlflow", "unknown", "its address is missing", "see above")
    if _is_inside(uri):
        fix = f"kubectl -n celebdit port-forward svc/mlflow 5000 and set {MLFLOW}=http://localhost:5000; the preflight step looks too"
        return Check("mlflow", "unknown", f"{uri} cannot be reached from here", fix)
    user, password = (settings.get(key, "") for key in names.SECRET_KEYS[names.MLFLOW_SECRET])
    return Check("mlflow", *_judged(uri, anonymous=_mlflow_status(uri, None), known=_mlflow_status(uri, (user, password))))


def _judged(uri: str, *, anonymous: int, known: int) -> tuple[State, str, str | None]:
    """Judge an MLflow server by what it answers to nobody and to the steps' user."""
    if known == 401:
        return "fail", f"{uri} does not accept the credentials of {names.MLFLOW_SECRET}", "write those of a user of MLflow into it"
    if known == 403:
        return "fail", f"{uri} answers 403", "if it says Invalid Host header, name this host in MLFLOW_HOSTS (servers/mlflow.yaml)"
    if known != 200:
        return "fail", f"{uri} answers HTTP {known}", "look at its log: kubectl -n celebdit logs deploy/mlflow"
    if anonymous == 200:
        return "fail", f"{uri} lets anybody in", "start it with authentication on, as docker/kubernetes/servers does"
    return "ok", f"{uri} asks who one is and knows the steps' user", None


def _mlflow_status(uri: str, who: tuple[str, str] | None) -> int:
    headers = urllib3.make_headers(basic_auth=":".join(who)) if who else {}
    url = f"{uri}/api/2.0/mlflow/experiments/search?max_results=1"
    try:
        return int(urllib3.request("GET", url, headers=headers, timeout=_TIMEOUT_S, retries=False).status)
    except urllib3.exceptions.HTTPError as error:
        raise BadInput(f"{uri} cannot be reached: {type(error).__name__}", hint="start it, or port-forward it") from error


def check_images(images: Images) -> list[Check]:
    """Check that the nodes can pull both images."""
    return [Check("images", *_pullable(reference)) for reference in (images.cpu, images.gpu)]


def _pullable(reference: str) -> tuple[State, str, str | None]:
    """Ask the registry for the manifest by digest, as a node would, without credentials of ours."""
    repository, _, digest = reference.partition("@")
    host, _, path = repository.partition("/")
    if host == "localhost" or not path or ("." not in host and ":" not in host):
        return "fail", f"{repository} is in no registry", "push it: make images REGISTRY=... PUSH=1"
    scheme = "http" if host.startswith(("127.0.0.1", "localhost:")) else "https"
    url = f"{scheme}://{host}/v2/{path}/manifests/{digest}"
    try:
        status = urllib3.request("HEAD", url, headers={"Accept": _MANIFEST_TYPES}, timeout=_TIMEOUT_S, retries=False).status
    except urllib3.exceptions.HTTPError:
        return "unknown", f"{host} cannot be reached from here", "the nodes may reach it all the same: look at a pod's events"
    if status == 200:
        return "ok", f"{repository}@{digest[:19]} can be pulled by anybody who reaches {host}", None
    if status in (401, 403):
        patch = '{"imagePullSecrets": [{"name": "..."}]}'
        fix = f"let {names.SERVICE_ACCOUNT} have it: kubectl patch serviceaccount {names.SERVICE_ACCOUNT} -p '{patch}'"
        return "unknown", f"{host} wants credentials for {path}, and the nodes need them too", fix
    return "fail", f"{host} does not have {path}@{digest[:19]} (HTTP {status})", "push it: make images REGISTRY=... PUSH=1"


def _is_inside(address: str | None) -> bool:
    """Return whether an address is a name that only the cluster's own DNS knows."""
    host = urlsplit(address).hostname if address else None
    return bool(host) and bool(re.search(r"\.svc(\.cluster\.local)?$", str(host)))


@contextmanager
def _as_the_steps(settings: Mapping[str, str]) -> Any:
    """Have the steps' credentials in the environment for the block, which is where boto3 reads them."""
    wanted = {key: settings[key] for key in (*names.SECRET_KEYS[names.S3_SECRET], "AWS_REGION") if settings.get(key)}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
