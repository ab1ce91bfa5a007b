"""Serves a registered version on Kubernetes: copies its files to object storage and writes the InferenceService manifest.

Promises: the location in the manifest is plain S3 (KServe cannot read `models:/`), written once per version and verified; no secret is in
the manifest, the service account has them; the container runs `mlflow models serve`. Does not install KServe.
"""

import yaml

from components.kube.objects import KubernetesObject
from components.registry.version_files import ModelFiles
from components.storage import ObjectStore, StoreUri

PORT = 8080
_MOUNT = "/mnt/models"


def export(files: ModelFiles, store: ObjectStore, target: StoreUri) -> StoreUri:
    """Copy the files of a version below `target`, unless they exist, and return it."""
    present = {item.uri.relative_to(target): item.size_bytes for item in store.list(target)}
    for path in sorted(path for path in files.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        name = path.relative_to(files.folder).as_posix()
        if present.get(name) != path.stat().st_size:
            # Not joined segment by segment: Python's names begin with underscores, which `StoreUri` refuses.
            store.put_file(StoreUri(target.bucket, f"{target.key}/{name}"), path)
    return target


def serving_command(model: str, host: str, port: int) -> list[str]:
    """Return the command that serves the model in the folder `model`, after `python`."""
    return ["-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--host", host, "--port", str(port)]


def inference_service(
    name: str, *, version: str, location: StoreUri, image: str, gpus: int, service_account: str, checkpoint_digest: str
) -> KubernetesObject:
    """Return the manifest of a KServe InferenceService for one version."""
    resources: KubernetesObject = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    if gpus:
        resources["limits"]["nvidia.com/gpu"] = str(gpus)
    container = {
        "name": "kserve-container",
        "image": image,
        "command": ["python"],
        "args": serving_command(_MOUNT, "0.0.0.0", PORT),  # noqa: S104 - inside a pod
        # KServe's admission webhook turns this variable into an init container that copies the files to /mnt/models.
        "env": [{"name": "STORAGE_URI", "value": str(location)}, {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"}],
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
    plain = "".join(character if character.isalnum() else "-" for character in name.lower()).strip("-")
    return plain[:50].strip("-") or "celebdit"
