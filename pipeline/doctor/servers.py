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
from components.environment import S3_ENDPOINT, STORE
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
        return Check("storage", "unknown", "location or credentials are missing", "see the checks above")
    if is_inside(endpoint):
        return Check(
            "storage",
            "unknown",
            f"{endpoint} cannot be reached from here",
            f"port-forward it and set {S3_ENDPOINT}; the preflight step checks it too",
        )
    with _credentials_of_steps(settings):
        probe(connect(endpoint, deadline_s=_TIMEOUT_S), StoreUri.parse(settings[STORE]))
    return Check("storage", "ok", f"the credentials of the steps can write and read {settings[STORE]}")


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


def is_inside(address: str | None) -> bool:
    """Return whether the host of an address is a name of the cluster's internal DNS."""
    parts = split_url(address) if address else None
    return parts is not None and bool(re.search(r"\.svc(\.cluster\.local)?$", parts.hostname or ""))


@contextmanager
def _credentials_of_steps(settings: Mapping[str, str]) -> Any:
    """Set the credentials of the steps in the environment for the block, where boto3 reads them."""
    credentials = {key: settings[key] for key in (*names.SECRET_KEYS[names.S3_SECRET], "AWS_REGION") if settings.get(key)}
    before = {key: os.environ.get(key) for key in credentials}
    os.environ.update(credentials)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
