"""Check what `celebdit submit` needs on the cluster: Kubeflow, namespace, permissions, secrets, settings, nodes and servers."""

import base64
import re
from collections.abc import Callable, Collection, Iterable

from components import deployment as names
from components.command_settings import CommandSettings
from components.environment import CREDENTIALS, MLFLOW, MLFLOW_USER, STORE, TRACKING_TOKEN, WORKSPACE
from components.errors import BadInput
from components.ingest.sources.open_source import kind_of
from components.kube.client import Cluster
from components.reports.listing import list_some
from components.resources import ResourcesConfig
from pipeline.config import RunConfig
from pipeline.doctor.checks import Check, run_check
from pipeline.doctor.claims import check_servers
from pipeline.doctor.licence import check_licence
from pipeline.doctor.mlflow import check_mlflow
from pipeline.doctor.nodes import check_gpus
from pipeline.doctor.overlays import check_overlays
from pipeline.doctor.requests import check_requests
from pipeline.doctor.servers import check_images, check_storage
from pipeline.images import Images
from pipeline.kubeflow import Kubeflow

_APPLY = "apply an overlay of docker/kubernetes (docs/kubernetes.md)"
_RIGHTS = (
    ("create", "trainjobs", "trainer.kubeflow.org", ""),
    ("get", "trainjobs", "trainer.kubeflow.org", ""),
    ("delete", "trainjobs", "trainer.kubeflow.org", ""),
    ("create", "networkpolicies", "networking.k8s.io", ""),
    ("get", "pods", "", ""),
    ("list", "pods", "", ""),
    ("get", "pods", "", "log"),
)
_OLDEST_KFP = (2, 15)
_IDENTITIES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
"""Annotations of a service account by which clouds give its pods an identity."""


def check_cluster(
    kubeflow: Callable[[], Kubeflow], cluster: Callable[[], Cluster], images: Callable[[], Images], config: RunConfig
) -> list[Check]:
    """Check what `celebdit submit` of `config` needs on the cluster; what is not configured here is a failed check, too."""
    checks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("kubeflow", lambda: _kubeflow(kubeflow())),
        ("kubernetes", lambda: _check_kubernetes(cluster(), config)),
        ("images", lambda: check_images(images())),
        ("overlay", check_overlays),
        ("licence", lambda: check_licence(config)),
    ]
    return [check for name, function in checks for check in run_check(name, function)]


def _check_kubernetes(cluster: Cluster, config: RunConfig) -> list[Check]:
    settings: dict[str, str] = {}
    checks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("kubernetes", lambda: Check("kubernetes", "ok", f"{cluster.server_version()}, namespace {cluster.namespace}")),
        ("namespace", lambda: _namespace(cluster)),
        ("rights", lambda: _rights(cluster)),
        ("secrets", lambda: _secrets(cluster, settings)),
        ("kaggle", lambda: _kaggle(cluster, config.data.source)),
        ("servers", lambda: check_servers(cluster)),
        ("hub", lambda: _hub(cluster, config.data.source)),
        ("settings", lambda: _settings(cluster, settings)),
        ("storage", lambda: check_storage(settings)),
        ("mlflow", lambda: check_mlflow(settings, config.registry.model_name)),
        ("gpus", lambda: check_gpus(cluster.nodes(), config.resources)),
        ("requests", lambda: check_requests(cluster.nodes(), config.resources)),
        ("trainer", lambda: _trainer(cluster, config.resources)),
    ]
    return [check for name, function in checks for check in run_check(name, function)]


def _kubeflow(kubeflow: Kubeflow) -> Check:
    is_multi_user = kubeflow.multi_user()
    version = kubeflow.server_version()
    server = f"{kubeflow.address.endpoint}, version {version or 'unknown'}, {'multi-user' if is_multi_user else 'single-user'}"
    numbers = re.match(r"v?(\d+)\.(\d+)", version or "")
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_KFP:
        return Check("kubeflow", "fail", server, f"upgrade it to {'.'.join(map(str, _OLDEST_KFP))} or newer")
    return Check("kubeflow", "ok", server)


def _namespace(cluster: Cluster) -> Check:
    namespace = cluster.read_namespace()
    if namespace is None:
        return Check("namespace", "fail", f"{cluster.namespace} does not exist", "give the namespace of your pipelines with --namespace")
    level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "privileged")
    if level == "restricted":
        fix = "KFP's own pods need baseline: kubectl label ns NAME pod-security.kubernetes.io/enforce=baseline --overwrite"
        return Check("namespace", "fail", f"{cluster.namespace} enforces Pod Security {level}", fix)
    return Check("namespace", "ok", f"{cluster.namespace} enforces Pod Security {level}")


def _rights(cluster: Cluster) -> Check:
    account = names.SERVICE_ACCOUNT
    if cluster.read("serviceaccounts", account) is None:
        fix = "create a profile for this namespace, or give the namespace of Kubeflow Pipelines with --namespace"
        return Check("rights", "fail", f"namespace {cluster.namespace} has no service account {account}", fix)
    try:
        missing = [right for right in _RIGHTS if not cluster.is_allowed(*right, account=account)]
    except BadInput as error:
        return Check(
            "rights",
            "unknown",
            f"not allowed to read the permissions of {account}: {error.message}",
            "ask an administrator to run celebdit doctor",
        )
    if missing:
        lines = ", ".join(f"{verb} {resource}{'/' + sub if sub else ''}" for verb, resource, _, sub in missing)
        return Check("rights", "fail", f"{account} may not {lines}", f"{_APPLY}: its Role celebdit-training grants them")
    return Check("rights", "ok", f"{account} may create, read and delete TrainJobs")


def _secrets(cluster: Cluster, settings: dict[str, str]) -> list[Check]:
    checks = []
    for secret, keys in names.SECRET_KEYS.items():
        data = _secret(cluster, secret)
        present = [key for key in keys if key in (data or {})]
        settings.update({key: (data or {})[key] for key in present})
        missing = missing_keys(secret, present)
        fix = _write_secret(cluster, secret, missing)
        identity = _identity(cluster) if secret == names.S3_SECRET and not present else None
        if identity is not None:
            checks.append(Check("secrets", "ok", f"{names.SERVICE_ACCOUNT} is {identity}: {secret} is not needed"))
        elif data is None:
            checks.append(Check("secrets", "fail", f"{secret} does not exist in {cluster.namespace}", fix))
        elif missing:
            checks.append(Check("secrets", "fail", f"{secret} has no {' and no '.join(missing)}", fix))
        else:
            checks.append(Check("secrets", "ok", f"{secret} has {', '.join(present)}"))
    return checks


def missing_keys(secret: str, present: Collection[str]) -> list[str]:
    """Return the keys that a server's secret lacks: both keys of object storage; of MLflow a token, or a user name and a password."""
    if secret == names.MLFLOW_SECRET and TRACKING_TOKEN in present:
        return []
    required = CREDENTIALS if secret == names.S3_SECRET else MLFLOW_USER
    return [key for key in required if key not in present]


def _identity(cluster: Cluster) -> str | None:
    """Return which identity of the cloud the account of the steps has, with which object storage needs no keys; None if it has none."""
    account = cluster.read("serviceaccounts", names.SERVICE_ACCOUNT) or {}
    annotations = (account.get("metadata") or {}).get("annotations") or {}
    return next((f"{key}={annotations[key]}" for key in _IDENTITIES if annotations.get(key)), None)


def _kaggle(cluster: Cluster, source: str) -> list[Check]:
    """Check for Kaggle credentials if the data comes from there; public datasets need none."""
    if kind_of(source).secret != names.KAGGLE_SECRET:
        return []
    secret, (token, *pair) = names.KAGGLE_SECRET, names.KAGGLE_KEYS
    data = _secret(cluster, secret) or {}
    present = [key for key in pair if key in data]
    if token in data or present == pair:
        return [Check("kaggle", "ok", f"{secret} has {token if token in data else ' and '.join(pair)}")]
    fix = _write_secret(cluster, secret, [token])
    if present:
        (missing,) = set(pair) - set(present)
        return [Check("kaggle", "fail", f"{secret} has {present[0]} and no {missing}", fix)]
    finding = f"{secret} has no credentials: sufficient if {source.removeprefix('kaggle://')} is public"
    return [Check("kaggle", "unknown", finding, f"if it is not public: {fix}")]


def _hub(cluster: Cluster, source: str) -> list[Check]:
    """Check for a token of the Hugging Face hub if the data comes from there; public datasets need none."""
    if kind_of(source).secret != names.HUB_SECRET:
        return []
    (token,) = names.HUB_KEYS
    if token in (_secret(cluster, names.HUB_SECRET) or {}):
        return [Check("hub", "ok", f"{names.HUB_SECRET} has {token}")]
    fix = f"if it is not public: {_write_secret(cluster, names.HUB_SECRET, [token])}"
    return [Check("hub", "unknown", f"{names.HUB_SECRET} has no {token}: sufficient if {source} is public", fix)]


def _secret(cluster: Cluster, name: str) -> dict[str, str] | None:
    """Return the non-empty values of a Secret, or None if it does not exist."""
    secret = cluster.read("secrets", name)
    if secret is None:
        return None
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in (secret.get("data") or {}).items() if value}


def _write_secret(cluster: Cluster, name: str, keys: Iterable[str]) -> str:
    lines = " and ".join(f"{key}=..." for key in keys)
    create = f"kubectl -n {cluster.namespace} create secret generic {name} --from-env-file=FILE --dry-run=client -o yaml"
    return f"write {lines} into a FILE, then: {create} | kubectl apply -f -"


def _settings(cluster: Cluster, settings: dict[str, str]) -> Check:
    config_map = cluster.read("configmaps", names.CONFIG_MAP)
    data = (config_map or {}).get("data") or {}
    settings.update(data)
    missing = [key for key in names.REQUIRED_CONFIG_KEYS if not data.get(key)]
    if missing:
        return Check("settings", "fail", f"config map {names.CONFIG_MAP} has no {' and no '.join(missing)}", _APPLY)
    if "your-bucket" in data[STORE]:
        return Check(
            "settings", "fail", f"{STORE} is still the placeholder {data[STORE]}", "edit celebdit.env of the overlay and apply it again"
        )
    if unknown := sorted(set(data) - set(names.CONFIG_KEYS)):
        fix = "docs/environment.md lists the settings that pods get; remove the others, or correct their spelling"
        return Check("settings", "fail", f"config map {names.CONFIG_MAP} has {list_some(unknown)}, which no step gets", fix)
    here, of_steps = CommandSettings.from_environment(), data.get(WORKSPACE) or None
    if here.mlflow_uri is not None and here.mlflow_workspace != of_steps:
        theirs, ours = (name or "the default workspace" for name in (of_steps, here.mlflow_workspace))
        difference = f"steps log into {theirs} of MLflow, commands here look into {ours}"
        return Check("settings", "unknown", difference, f"set {WORKSPACE} alike here and in {names.CONFIG_MAP}, if it is the same server")
    return Check("settings", "ok", f"{data[STORE]}, {data[MLFLOW]}")


def _trainer(cluster: Cluster, resources: ResourcesConfig) -> Check:
    runtime = cluster.custom("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", names.TRAINING_RUNTIME, of_cluster=True)
    if runtime is not None:
        return Check("trainer", "ok", f"Kubeflow Trainer has the runtime {names.TRAINING_RUNTIME}")
    if resources.nodes == 1:
        return Check("trainer", "ok", "not needed: resources.nodes is 1")
    fix = f"install Kubeflow Trainer 2.2 or newer, then {_APPLY}"
    return Check("trainer", "fail", f"there is no ClusterTrainingRuntime {names.TRAINING_RUNTIME}", fix)
