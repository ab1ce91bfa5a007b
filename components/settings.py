"""Where the outside world is: endpoints, credentials' presence and run identity, read once from the environment.

Promises: everything in `components/` that depends on the environment gets it from a `Settings` made at the entry point. Secret values are
not kept here: boto3 and MLflow read theirs from the environment themselves; here is only checked that they exist.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput

STORE = "CELEBDIT_STORE"
MLFLOW = "MLFLOW_TRACKING_URI"
S3_ENDPOINT = "AWS_ENDPOINT_URL"
RUN_ID = "CELEBDIT_RUN_ID"
RUN_URL = "CELEBDIT_RUN_URL"
KFP_UI = "CELEBDIT_KFP_UI"
PRESET = "CELEBDIT_PRESET"
EXPERIMENT = "CELEBDIT_EXPERIMENT"
WORK_DIR = "CELEBDIT_WORK_DIR"
EVENTS = "CELEBDIT_EVENTS"
STORAGE_DEADLINE = "CELEBDIT_STORAGE_DEADLINE_S"
GIT_COMMIT = "CELEBDIT_GIT_COMMIT"
IMAGE_DIGEST = "CELEBDIT_IMAGE_DIGEST"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

_STORE_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*")


@dataclass(frozen=True)
class Settings:
    """The environment of one process."""

    store_uri: str
    mlflow_uri: str
    s3_endpoint: str | None
    experiment: str
    run_id: str
    run_url: str | None
    preset: str
    work_dir: Path
    events_path: Path | None
    git_commit: str
    image_digest: str
    storage_deadline_s: float = 300.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings from `environ`.

        Raises:
            BadInput: naming the first variable that is missing or cannot be used, never its value if that may be secret.
        """
        store_uri = _required(environ, STORE, "the S3 location for data sets and runs, like s3://bucket/prefix").rstrip("/")
        if not _STORE_PATTERN.fullmatch(store_uri) or ".." in store_uri:
            raise BadInput(f"{STORE} is not an S3 location", hint=f"set {STORE}=s3://bucket/prefix (letters, digits, '.', '_', '-')")
        mlflow_uri = _required(environ, MLFLOW, "the address of the MLflow server")
        if re.search(r"//[^/@]*:[^/@]*@", mlflow_uri):
            raise BadInput(f"{MLFLOW} contains credentials", hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        events = environ.get(EVENTS)
        return cls(
            store_uri=store_uri,
            mlflow_uri=mlflow_uri,
            s3_endpoint=environ.get("AWS_ENDPOINT_URL_S3") or environ.get(S3_ENDPOINT) or None,
            experiment=environ.get(EXPERIMENT) or "celebdit",
            run_id=(run_id := _required(environ, RUN_ID, "the identity of the pipeline run")),
            run_url=environ.get(RUN_URL) or (f"{environ[KFP_UI].rstrip('/')}/#/runs/details/{run_id}" if environ.get(KFP_UI) else None),
            preset=environ.get(PRESET) or "custom",
            work_dir=Path(environ.get(WORK_DIR) or Path(tempfile.gettempdir(), "celebdit")),
            events_path=Path(events) if events else None,
            git_commit=environ.get(GIT_COMMIT) or "unknown",
            image_digest=environ.get(IMAGE_DIGEST) or "none",
            storage_deadline_s=_seconds(environ, STORAGE_DEADLINE, default=300.0),
        )


def _seconds(environ: Mapping[str, str], name: str, *, default: float) -> float:
    """Return the seconds that `name` is set to."""
    text = environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 86400:
        raise BadInput(f"environment variable {name} is {text[:20]!r}, not a number of seconds between 0 and 86400")
    return seconds


def missing_credentials(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the S3 credential variables that are not set, if no other source of credentials is configured either."""
    others = ("AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
    return [] if any(environ.get(name) for name in others) else [name for name in CREDENTIALS if not environ.get(name)]


def _required(environ: Mapping[str, str], name: str, meaning: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise BadInput(f"environment variable {name} is not set", hint=f"it is {meaning}")
    return value
