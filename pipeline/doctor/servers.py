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
from components.environment import (
    CREDENTIALS,
    S3_ENCRYPTION,
    S3_ENDPOINT,
    S3_ENDPOINT_FIRST,
    S3_KMS_KEY_ID,
    S3_REQUEST_PAYER,
    S3_STORAGE_CLASS,
    STORE,
)
from components.storage import StoreUri, connect
from components.storage.clock import check_clock
from components.storage.probe import probe
from pipeline.doctor.checks import Check, State
from pipeline.images import Images

_MANIFEST_TYPES = ", ".join(
    f"application/vnd.{kind}+json" for kind in ("oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2")
)
_TIMEOUT_S = 10.0
_OF_STORAGE = ("AWS_", S3_ENCRYPTION, S3_KMS_KEY_ID, S3_STORAGE_CLASS, S3_REQUEST_PAYER)
"""How the names of the variables begin that a connection to object storage reads."""
_OF_THIS_MACHINE = ("AWS_CA_BUNDLE", "AWS_S3_ADDRESSING_STYLE")
"""What depends on the way to the store, which from here may be a port-forward."""


def check_storage(settings: Mapping[str, str]) -> Check:
    """Check that the steps' credentials may write to and read from the store."""
    endpoint = CommandSettings.from_environment().s3_endpoint or settings.get(S3_ENDPOINT_FIRST) or settings.get(S3_ENDPOINT)
    if STORE not in settings or not all(settings.get(key) for key in CREDENTIALS):
        return Check("storage", "unknown", "location or credentials are missing", "see the checks above")
    if is_inside(endpoint):
        return Check(
            "storage",
            "unknown",
            f"{endpoint} cannot be reached from here",
            f"port-forward it and set {S3_ENDPOINT}; the preflight step checks it too",
        )
    with _environment_of_steps(settings):
        return check_store(endpoint, settings[STORE], whose="the credentials of the steps")


def check_store(endpoint: str | None, location: str, *, whose: str) -> Check:
    """Check that the credentials in the environment, described as `whose`, may do in the store what the steps do.

    Raises:
        CelebditError: if they may not, or the store does not respond.
    """
    store, prefix = connect(endpoint, deadline_s=_TIMEOUT_S, read_timeout_s=_TIMEOUT_S), StoreUri.parse(location)
    check_clock(store, prefix)
    report = probe(store, prefix)
    return Check("storage", "ok", f"{whose} can write and read {location} ({report.describe()}); {report.bucket.describe()}")


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
def _environment_of_steps(settings: Mapping[str, str]) -> Any:
    """Set for the block what boto3 reads in a step, and nothing of this shell: its token or profile would win over a step's keys."""
    before = {key: value for key, value in os.environ.items() if key.startswith(_OF_STORAGE)}
    steps = {key: value for key, value in settings.items() if key.startswith(_OF_STORAGE) and value}
    for key in before:
        if key not in _OF_THIS_MACHINE:
            del os.environ[key]
    os.environ.update(steps)
    try:
        yield
    finally:
        for key in steps:
            os.environ.pop(key, None)
        os.environ.update(before)
