"""Serves a registered version on Kubernetes: copies its files to object storage and writes the InferenceService manifest.

Promises: the location in the manifest is plain S3 or an image (KServe cannot read `models:/`); the InferenceService names the digest of the
version's manifest, and the container checks every file against it before it runs any; no secret is in it, the service account has them.
Does not install KServe.
"""

import tempfile
from pathlib import Path

import yaml

from components.kube.objects import KubernetesObject
from components.registry.version_files import ModelFiles
from components.storage import ObjectStore, StoreUri, file_sha256

PORT = 8080
_MOUNT = "/mnt/models"


def export(files: ModelFiles, store: ObjectStore, target: StoreUri) -> StoreUri:
    """Make the objects below `target` equal to the files of a version, and return it; what is equal already is not uploaded."""
    paths = {path.relative_to(files.folder).as_posix(): path for path in sorted(files.folder.rglob("*")) if path.is_file()}
    present = {item.uri.relative_to(target): item for item in store.list(target)}
    for name in sorted(present.keys() - paths.keys()):
        store.delete(present[name].uri)  # the container refuses files that were not registered
    with tempfile.TemporaryDirectory() as scratch:
        for name, path in paths.items():
            if name in present and present[name].size_bytes == path.stat().st_size:
                copy = Path(scratch, "copy")
                if store.get_file(present[name].uri, copy) == file_sha256(path):
                    continue
            # Not joined segment by segment: Python's names begin with underscores, which `StoreUri` refuses.
            store.put_file(StoreUri(target.bucket, f"{target.key}/{name}"), path)
    return target


def serving_command(folder: str, manifest_sha256: str, host: str, port: int) -> list[str]:
    """Return the command that checks and serves the version in `folder`, after `python`."""
    return [
        *("-P", "-m", "components.serving.server", folder, "--manifest", manifest_sha256),
        *("--host", host, "--port", str(port)),
    ]


def inference_service(
    name: str,
    *,
    version: str,
    location: str,
    image: str,
    gpus: int,
    service_account: str,
    checkpoint_digest: str,
    manifest_sha256: str,
) -> KubernetesObject:
    """Return the manifest of a KServe InferenceService for one version."""
    resources: KubernetesObject = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    if gpus:
        resources["limits"]["nvidia.com/gpu"] = str(gpus)
    container = {
        "name": "kserve-container",
        "image": image,
        "command": ["python"],
        "args": serving_command(_MOUNT, manifest_sha256, "0.0.0.0", PORT),  # noqa: S104 - inside a pod
        # KServe's admission webhook turns this variable into an init container that copies the files to /mnt/models.
        "env": [{"name": "STORAGE_URI", "value": location}, {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"}],
        "ports": [{"name": "http1", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": "/ping", "port": PORT},
            "initialDelaySeconds": 10,
            "periodSeconds": 5,
            "failureThreshold": 60,
        },
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": _dns_name(name),
            "annotations": {"celebdit/model-version": version, "celebdit/checkpoint-digest": checkpoint_digest},
        },
        "spec": {"predictor": {"serviceAccountName": service_account, "containers": [container]}},
    }


def as_yaml(manifest: KubernetesObject) -> str:
    """Return a manifest as YAML."""
    return str(yaml.safe_dump(manifest, sort_keys=False))


def _dns_name(name: str) -> str:
    """Return `name` as KServe accepts the name of an InferenceService: letters, digits and hyphens, of which a letter is first."""
    plain = "".join(character if character.isalnum() else "-" for character in name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"celebdit-{plain}")[:50].strip("-")
