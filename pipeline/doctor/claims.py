"""Check the servers of docker/kubernetes in their own namespace: their secret and their volume claims."""

from components.errors import BadInput
from components.kube.client import Cluster
from pipeline.doctor.checks import Check

_NAMESPACE = "celebdit"
_SECRET = "mlflow-server"  # noqa: S105 - a name
_CLAIMS = ("postgres", "s3")


def check_servers(cluster: Cluster) -> list[Check]:
    """Check what the servers' pods wait for; nothing if the servers are not on this cluster."""
    servers = Cluster(cluster.api, _NAMESPACE, deadline_s=5.0)
    if servers.read_namespace() is None:
        return []
    try:
        return _check_objects(servers)
    except BadInput as error:
        return [Check("servers", "unknown", error.message, "ask an administrator to run celebdit doctor")]


def _check_objects(servers: Cluster) -> list[Check]:
    checks = []
    if servers.read("secrets", _SECRET) is None:
        fix = "docker/kubernetes/new-secrets.sh OVERLAY/secrets, then apply the overlay"
        checks.append(Check("servers", "fail", f"secret {_SECRET} does not exist in {_NAMESPACE}: MLflow does not start", fix))
    for name in _CLAIMS:
        claim = servers.read("persistentvolumeclaims", name)
        phase = "missing" if claim is None else str(claim.get("status", {}).get("phase", "unknown"))
        if claim is None:
            fix = f"apply an overlay with {name}; nothing to do if you use a server of your own"
            checks.append(Check("servers", "unknown", f"volume claim {name} does not exist in {_NAMESPACE}", fix))
        elif phase != "Bound":
            fix = f"kubectl -n {_NAMESPACE} describe pvc {name}: the cluster needs a default StorageClass with room"
            checks.append(Check("servers", "fail", f"volume claim {name} is {phase}", fix))
    return checks or [Check("servers", "ok", "the secret and the volume claims of the servers exist")]
