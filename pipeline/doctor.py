"""Everything that a first run trips over, checked before it: on this machine, or on the cluster.

Promises: each check is one line that says what was found and, if it is not good, what to do; a check that cannot be made from here says so
and fails nothing; no check changes anything, and no secret value is shown. What the steps see from inside is the preflight step's business.
"""

import base64
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import urllib3

from components import cluster as names
from components.errors import BadInput, CelebditError
from components.kube import Cluster
from components.resources import ResourcesConfig, Toleration
from components.settings import MLFLOW, S3_ENDPOINT, STORE
from components.storage import StoreUri, connect
from pipeline.config import RunConfig
from pipeline.containers import engine_address
from pipeline.images import Images
from pipeline.kubeflow import Kubeflow

State = Literal["ok", "fail", "unknown"]
_APPLY = "apply an overlay of docker/kubernetes (docs/kubernetes.md)"
_RIGHTS = (
    ("create", "trainjobs", "trainer.kubeflow.org", ""),
    ("get", "trainjobs", "trainer.kubeflow.org", ""),
    ("delete", "trainjobs", "trainer.kubeflow.org", ""),
    ("get", "pods", "", ""),
    ("list", "pods", "", ""),
    ("get", "pods", "", "log"),
)
_OLDEST_KFP = (2, 15)
_MANIFEST_TYPES = ", ".join(
    f"application/vnd.{kind}+json" for kind in ("oci.image.manifest.v1", "oci.image.index.v1", "docker.distribution.manifest.v2")
)
_SPARE_BYTES = 5 * 2**30
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    state: State
    found: str
    fix: str | None = None


def checked(name: str, look: Callable[[], Check | list[Check]]) -> list[Check]:
    """Return what `look` found; an error that is meant for people is a failed check."""
    try:
        found = look()
    except CelebditError as error:
        return [Check(name, "fail", error.message, error.hint)]
    return found if isinstance(found, list) else [found]


def check_machine(home: Path, environ: Mapping[str, str]) -> list[Check]:
    """Check what `celebdit run` needs here."""
    return [
        *checked("python", lambda: Check("python", "ok", sys.version.split()[0])),
        *checked("disk", lambda: _disk(home)),
        *checked("endpoints", lambda: _endpoints(environ)),
        *checked("containers", _containers),
    ]


def check_cluster(kubeflow: Kubeflow, cluster: Cluster, images: Callable[[], Images], config: RunConfig) -> list[Check]:
    """Check what a `celebdit submit` of `config` needs there."""
    settings: dict[str, str] = {}
    looks: list[tuple[str, Callable[[], Check | list[Check]]]] = [
        ("kubeflow", lambda: _kubeflow(kubeflow)),
        ("kubernetes", lambda: Check("kubernetes", "ok", f"{cluster.server_version()}, namespace {cluster.namespace}")),
        ("namespace", lambda: _namespace(cluster)),
        ("rights", lambda: _rights(cluster)),
        ("secrets", lambda: _secrets(cluster, settings)),
        ("kaggle", lambda: _kaggle(cluster, config.data.source)),
        ("settings", lambda: _settings(cluster, settings)),
        ("storage", lambda: _storage(settings)),
        ("mlflow", lambda: _mlflow(settings)),
        ("images", lambda: _images(images())),
        ("gpus", lambda: _gpus(cluster.nodes(), config.resources)),
        ("trainer", lambda: _trainer(cluster, config.resources)),
    ]
    return [check for name, look in looks for check in checked(name, look)]


def _disk(home: Path) -> Check:
    folder = next(parent for parent in (home.absolute(), *home.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.0f} GB free in {folder}"
    return Check("disk", "ok", found) if free >= _SPARE_BYTES else Check("disk", "fail", found, "free some, or choose another --home")


def _endpoints(environ: Mapping[str, str]) -> Check:
    given = [name for name in (STORE, MLFLOW) if environ.get(name)]
    if len(given) == 1:
        return Check("endpoints", "fail", f"only {given[0]} is set", f"set {STORE} and {MLFLOW}, or neither")
    return Check("endpoints", "ok", f"servers of yours: {STORE} and {MLFLOW}" if given else "none set: the embedded servers are used")


def _containers() -> Check:
    try:
        with engine_address() as address:
            return Check("containers", "ok", f"an engine answers at {address}" if "celebdit-podman" not in address else "podman works")
    except BadInput as error:
        return Check("containers", "unknown", error.message, "only needed for --runner container")


def _kubeflow(kubeflow: Kubeflow) -> Check:
    many = kubeflow.multi_user()
    version = kubeflow.server_version()
    found = f"{kubeflow.address.endpoint}, version {version or 'unknown'}, {'many users' if many else 'one user'}"
    numbers = re.match(r"v?(\d+)\.(\d+)", version or "")
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_KFP:
        return Check("kubeflow", "fail", found, f"upgrade it to {'.'.join(map(str, _OLDEST_KFP))} or newer")
    return Check("kubeflow", "ok", found)


def _namespace(cluster: Cluster) -> Check:
    found = cluster.read_namespace()
    if found is None:
        return Check("namespace", "fail", f"{cluster.namespace} does not exist", "name that of your pipelines with --namespace")
    level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "privileged")
    if level == "restricted":
        fix = "KFP's own pods need baseline: kubectl label ns NAME pod-security.kubernetes.io/enforce=baseline --overwrite"
        return Check("namespace", "fail", f"{cluster.namespace} enforces Pod Security {level}", fix)
    return Check("namespace", "ok", f"{cluster.namespace} enforces Pod Security {level}")


def _rights(cluster: Cluster) -> Check:
    account = names.SERVICE_ACCOUNT
    if cluster.read("serviceaccounts", account) is None:
        fix = "create a profile for this namespace, or name the namespace of Kubeflow Pipelines with --namespace"
        return Check("rights", "fail", f"namespace {cluster.namespace} has no service account {account}", fix)
    try:
        missing = [right for right in _RIGHTS if not cluster.may(*right, account=account)]
    except BadInput as error:
        return Check(
            "rights", "unknown", f"you may not ask what {account} may do: {error.message}", "ask an administrator to run the doctor"
        )
    if missing:
        lines = ", ".join(f"{verb} {resource}{'/' + sub if sub else ''}" for verb, resource, _, sub in missing)
        return Check("rights", "fail", f"{account} may not {lines}", f"{_APPLY}: its Role celebdit-training grants them")
    return Check("rights", "ok", f"{account} may make, watch and delete a TrainJob")


def _secrets(cluster: Cluster, settings: dict[str, str]) -> list[Check]:
    checks = []
    for secret, keys in names.SECRET_KEYS.items():
        data = _secret(cluster, secret)
        missing = [key for key in keys if key not in (data or {})]
        settings.update({key: value for key, value in (data or {}).items() if key in keys})
        fix = _write_secret(cluster, secret, keys)
        if data is None:
            checks.append(Check("secrets", "fail", f"{secret} does not exist in {cluster.namespace}", fix))
        elif missing:
            checks.append(Check("secrets", "fail", f"{secret} has no {' and no '.join(missing)}", fix))
        else:
            checks.append(Check("secrets", "ok", f"{secret} has {', '.join(keys)}"))
    return checks


def _kaggle(cluster: Cluster, source: str) -> list[Check]:
    """Look for Kaggle's credentials where the data comes from there; it gives public data sets to anybody."""
    if not source.startswith("kaggle://"):
        return []
    secret, (token, *pair) = names.KAGGLE_SECRET, names.KAGGLE_KEYS
    data = _secret(cluster, secret) or {}
    having = [key for key in pair if key in data]
    if token in data or having == pair:
        return [Check("kaggle", "ok", f"{secret} has {token if token in data else ' and '.join(pair)}")]
    fix = _write_secret(cluster, secret, [token])
    if having:
        (missing,) = set(pair) - set(having)
        return [Check("kaggle", "fail", f"{secret} has {having[0]} and no {missing}", fix)]
    found = f"there are no credentials in {secret}: enough if Kaggle gives {source.removeprefix('kaggle://')} to anybody"
    return [Check("kaggle", "unknown", found, f"if it does not: {fix}")]


def _secret(cluster: Cluster, name: str) -> dict[str, str] | None:
    """Return what a Secret holds, without what is empty, or None if there is none."""
    found = cluster.read("secrets", name)
    if found is None:
        return None
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in (found.get("data") or {}).items() if value}


def _write_secret(cluster: Cluster, name: str, keys: Iterable[str]) -> str:
    lines = " and ".join(f"{key}=..." for key in keys)
    create = f"kubectl -n {cluster.namespace} create secret generic {name} --from-env-file=FILE --dry-run=client -o yaml"
    return f"write {lines} into a FILE, then: {create} | kubectl apply -f -"


def _settings(cluster: Cluster, settings: dict[str, str]) -> Check:
    found = cluster.read("configmaps", names.CONFIG_MAP)
    data = (found or {}).get("data") or {}
    settings.update(data)
    missing = [key for key in names.REQUIRED_CONFIG_KEYS if not data.get(key)]
    if missing:
        return Check("settings", "fail", f"config map {names.CONFIG_MAP} has no {' and no '.join(missing)}", _APPLY)
    if "your-bucket" in data[STORE]:
        return Check("settings", "fail", f"{STORE} is still {data[STORE]}", "edit celebdit.env of the overlay and apply it again")
    return Check("settings", "ok", f"{data[STORE]}, {data[MLFLOW]}")


def _storage(settings: Mapping[str, str]) -> Check:
    endpoint = os.environ.get(S3_ENDPOINT) or settings.get(S3_ENDPOINT)
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
        connect(endpoint, deadline_s=_TIMEOUT_S).probe(StoreUri.parse(settings[STORE]))
    return Check("storage", "ok", f"{settings[STORE]} can be written and read with the steps' credentials")


def _mlflow(settings: Mapping[str, str]) -> Check:
    uri = (os.environ.get(MLFLOW) or settings.get(MLFLOW) or "").rstrip("/")
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


def _images(images: Images) -> list[Check]:
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


def _gpus(nodes: Iterable[dict[str, Any]], resources: ResourcesConfig) -> Check:
    if not resources.on_gpus:
        return Check("gpus", "ok", "none are asked for (resources.device is cpu)")
    kind, wanted = resources.gpu_type, resources.processes
    having = [node for node in nodes if int(node.get("status", {}).get("allocatable", {}).get(kind, 0)) >= wanted]
    if not having:
        fix = "install the device plugin, lower resources.processes, or set resources.gpu_type"
        return Check("gpus", "fail", f"no node has {wanted} {kind}", fix)
    selected = [node for node in having if resources.node_selector.items() <= node["metadata"].get("labels", {}).items()]
    if not selected:
        return Check(
            "gpus", "fail", f"none of {len(having)} GPU nodes has the labels {resources.node_selector}", "set resources.node_selector"
        )
    taints = [taint for node in selected for taint in _repelling(node, resources.all_tolerations)]
    free = [node for node in selected if not _repelling(node, resources.all_tolerations)]
    if len(free) < resources.nodes:
        if taints:
            fix = f'set resources.tolerations=[{{key="{taints[0]["key"]}"}}]'
            return Check("gpus", "fail", f"{len(selected) - len(free)} GPU node(s) have the taint {taints[0]['key']}", fix)
        return Check(
            "gpus", "fail", f"{len(free)} node(s) have {wanted} {kind}, resources.nodes is {resources.nodes}", "set resources.nodes"
        )
    return Check("gpus", "ok", f"{len(free)} node(s) with {wanted} {kind} or more")


def _repelling(node: Mapping[str, Any], tolerations: Iterable[Toleration]) -> list[dict[str, Any]]:
    """Return the taints that keep our pods off a node."""
    found = node.get("spec", {}).get("taints", [])
    return [
        taint
        for taint in found
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerated(taint, toleration) for toleration in tolerations)
    ]


def _tolerated(taint: Mapping[str, Any], toleration: Toleration) -> bool:
    effect = toleration.effect is None or toleration.effect == taint["effect"]
    value = toleration.operator == "Exists" or toleration.value == taint.get("value")
    return toleration.key == taint["key"] and effect and value


def _trainer(cluster: Cluster, resources: ResourcesConfig) -> Check:
    found = cluster.custom("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", names.TRAINING_RUNTIME, of_cluster=True)
    if found is not None:
        return Check("trainer", "ok", f"Kubeflow Trainer knows the runtime {names.TRAINING_RUNTIME}")
    if resources.nodes == 1:
        return Check("trainer", "ok", "not needed: resources.nodes is 1")
    fix = f"install Kubeflow Trainer 2.2 or newer, then {_APPLY}"
    return Check("trainer", "fail", f"there is no ClusterTrainingRuntime {names.TRAINING_RUNTIME}", fix)


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
