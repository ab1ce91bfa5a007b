"""Settings from the environment: endpoints, presence of credentials and run identity, read once.

Promises: everything that depends on a CELEBDIT_* variable (listed in `components/environment.py`) gets it from the `Settings` made at the
entry point, or a command from its `CommandSettings` (`components/command_settings.py`); what a process needs before it has either is in
`components/process_settings.py`; no other module reads one. Secret values of object storage and MLflow are not kept
here.

Variables of other programs stay with the code that reads them: boto3 and MLflow take AWS_* and MLFLOW_* from the environment of the process
themselves (`storage/client.py` and `tracking/connection.py` set or read a few), a rank reads torchrun's RANK and WORLD_SIZE and their local
twins (`runtime/rank.py`, `runtime/rank_failures.py`), a node of a TrainJob Trainer's PET_* (`runtime/rendezvous.py`), the Kubernetes client
KUBERNETES_* and KUBECONFIG, kagglehub KAGGLE_*, huggingface-hub HF_*, the container engine's client DOCKER_HOST. A test has the list of the
modules that touch `os.environ` and why.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.address import is_server_url
from components.environment import (
    CREDENTIAL_PROVIDERS,
    CREDENTIALS,
    EXPERIMENT,
    GIT_COMMIT,
    IMAGE,
    IMAGE_DIGEST,
    KFP_UI,
    LOG_LEVEL,
    MLFLOW,
    NAMESPACE,
    OWN_SERVERS,
    POD,
    PRESET,
    REGISTRY,
    RENDEZVOUS,
    RUN_ID,
    RUN_URL,
    S3_ENCRYPTION,
    S3_ENDPOINT,
    S3_ENDPOINT_FIRST,
    S3_KMS_KEY_ID,
    S3_REQUEST_PAYER,
    S3_STORAGE_CLASS,
    SERVICE_ACCOUNT,
    STORAGE_DEADLINE,
    STORE,
    STORE_DISK,
    WORK_DIR,
)
from components.errors import BadInput, shorten
from components.process_settings import events_path

_STORE_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9][A-Za-z0-9._-]{0,254})*")
_LONGEST_STORE = 512
"""Characters: a key has 1024 at most, and its end is ours."""
_STORE_HINT = (
    f"set {STORE}=s3://bucket/prefix: a bucket of 3 to 63 of a-z, 0-9, '.' and '-', a prefix of letters, digits and '._-', of which each "
    f"part begins with a letter or digit, {_LONGEST_STORE} characters in all"
)
_MOST_CHARACTERS = 256
"""Of the name of an experiment, in the database of MLflow 3.17."""


@dataclass(frozen=True)
class Settings:
    """The environment of one process of a run."""

    store_uri: str
    mlflow_uri: str
    s3_endpoint: str | None
    experiment: str
    run_id: str | None
    """The pipeline run that this process belongs to; None for a command that is part of none. See `pipeline_run_id`."""
    run_url: str | None
    preset: str | None
    work_dir: Path
    events_path: Path | None
    git_commit: str | None
    image_digest: str | None
    storage_deadline_s: float = 300.0
    image: str | None = None
    """The image for pods that a step creates, by digest."""
    namespace: str | None = None
    pod: str | None = None
    """The pod that this process runs in."""
    service_account: str | None = None
    """The account of that pod, which a cluster may give rights on object storage: see workload identity in docs/kubernetes.md."""
    log_level: str | None = None
    """The level that `log_level` read, for the nodes of a TrainJob."""
    store_disk: Path | None = None
    """Where the embedded object storage keeps its objects; None for any other."""
    rendezvous: Path | None = None
    """Of a rank: the file through which the ranks of one machine find each other."""
    own_servers: str | None = None
    """The user and the ports of the embedded servers, as `OwnServers` writes them; None for other servers."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, in_run: bool = True) -> "Settings":
        """Read the settings from `environ`, by default the environment of this process; a step needs a run, a command does not.

        Raises:
            BadInput: naming the first variable that is missing or cannot be used, never its value if that may be secret.
        """
        environ = os.environ if environ is None else environ
        store_uri = _require(environ, STORE, "the S3 location for datasets and runs, like s3://bucket/prefix").rstrip("/")
        if not _STORE_PATTERN.fullmatch(store_uri) or ".." in store_uri or len(store_uri) > _LONGEST_STORE:
            raise BadInput(f"{STORE} is not an S3 location", hint=_STORE_HINT)
        mlflow_uri = _require(environ, MLFLOW, "the address of the MLflow server")
        if has_credentials(mlflow_uri):
            raise BadInput(f"{MLFLOW} contains credentials", hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        if not is_server_url(mlflow_uri):
            raise BadInput(
                f"{MLFLOW} is not the URL of a server", hint="write it like http://host:5000; to use the embedded server, unset it"
            )
        if "?" in mlflow_uri or "#" in mlflow_uri:
            raise BadInput(f"{MLFLOW} is the address of a page of MLflow", hint="leave out what follows ? or #, like http://host:5000")
        # MLflow's server (3.17) looks up a version's LoggedModel among its own runs, so another one refuses every version.
        if environ.get(REGISTRY, "").strip().rstrip("/") not in ("", mlflow_uri.rstrip("/")):
            raise BadInput(
                f"{REGISTRY} is another server than {MLFLOW}, and one server keeps both the runs and the versions that come from them",
                hint=f"unset {REGISTRY}",
            )
        for name in (S3_ENDPOINT_FIRST, S3_ENDPOINT):
            if has_credentials(environ.get(name, "")):
                raise BadInput(f"{name} contains credentials", hint=f"set {CREDENTIALS[0]} and {CREDENTIALS[1]} instead")
        run_id = _require(environ, RUN_ID, "the identity of the pipeline run") if in_run else environ.get(RUN_ID) or None
        kfp_ui = environ.get(KFP_UI, "").rstrip("/")
        return cls(
            store_uri=store_uri,
            mlflow_uri=mlflow_uri,
            s3_endpoint=environ.get(S3_ENDPOINT_FIRST, "").strip() or environ.get(S3_ENDPOINT, "").strip() or None,
            experiment=experiment_name(environ),
            run_id=run_id,
            run_url=environ.get(RUN_URL) or (f"{kfp_ui}/#/runs/details/{run_id}" if kfp_ui and run_id else None),
            preset=environ.get(PRESET) or None,
            work_dir=Path(environ.get(WORK_DIR) or default_work_dir()),
            events_path=events_path(environ),
            git_commit=environ.get(GIT_COMMIT) or None,
            image_digest=environ.get(IMAGE_DIGEST) or None,
            storage_deadline_s=_seconds(environ, STORAGE_DEADLINE, default=300.0),
            image=environ.get(IMAGE) or None,
            namespace=environ.get(NAMESPACE) or None,
            pod=environ.get(POD) or None,
            service_account=environ.get(SERVICE_ACCOUNT) or None,
            log_level=environ.get(LOG_LEVEL) or None,
            store_disk=Path(environ[STORE_DISK]) if environ.get(STORE_DISK) else None,
            rendezvous=Path(environ[RENDEZVOUS]) if environ.get(RENDEZVOUS) else None,
            own_servers=environ.get(OWN_SERVERS) or None,
        )

    @property
    def pipeline_run_id(self) -> str:
        """The pipeline run that this process belongs to.

        Raises:
            BadInput: if it belongs to none.
        """
        if self.run_id is None:
            raise BadInput("this process belongs to no pipeline run", hint=f"set {RUN_ID} to the run's id")
        return self.run_id


def default_work_dir() -> Path:
    """Return the work folder where none is set: its name is known to all users of the machine, so a step checks whose it is."""
    return Path(tempfile.gettempdir(), "celebdit")


def experiment_name(environ: Mapping[str, str] | None = None) -> str:
    """Return the name of the MLflow experiment.

    Raises:
        BadInput: if MLflow cannot store it.
    """
    name = (os.environ if environ is None else environ).get(EXPERIMENT, "").strip() or "celebdit"
    if len(name) > _MOST_CHARACTERS or not name.isprintable():
        raise BadInput(
            f"{EXPERIMENT} has {len(name)} characters, and begins with {name[:20]!r}",
            hint=f"set it to a name of at most {_MOST_CHARACTERS} printable characters",
        )
    return name


def has_credentials(address: str) -> bool:
    """Return whether an address seems to hold a user name or a password, which may contain any character."""
    return re.search(r"://[^?#]*@", address) is not None


def _seconds(environ: Mapping[str, str], name: str, *, default: float) -> float:
    """Return the seconds that `name` is set to."""
    text = environ.get(name)
    if not text:
        return default
    with suppress(ValueError):
        seconds = float(text)
        if 0 < seconds <= 86400:
            return seconds
    raise BadInput(
        f"environment variable {name} is {shorten(repr(text), max_characters=20)}, not a number of seconds between 0 and 86400",
        hint=f"unset it to get {default:g}",
    )


def object_parameters(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the settings of requests to object storage that are set, by variable, unchecked; see `storage/parameters.py`."""
    environ = os.environ if environ is None else environ
    return {name: environ[name] for name in (S3_ENCRYPTION, S3_KMS_KEY_ID, S3_STORAGE_CLASS, S3_REQUEST_PAYER) if environ.get(name)}


def missing_credentials(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the S3 credential variables that are not set, if no other source of credentials is configured either."""
    environ = os.environ if environ is None else environ
    return [] if any(environ.get(name) for name in CREDENTIAL_PROVIDERS) else [name for name in CREDENTIALS if not environ.get(name)]


def has_key_pair(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether the S3 key and its id are both set."""
    environ = os.environ if environ is None else environ
    return all(environ.get(name) for name in CREDENTIALS)


def _require(environ: Mapping[str, str], name: str, meaning: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise BadInput(f"environment variable {name} is not set", hint=f"it is {meaning}")
    return value
