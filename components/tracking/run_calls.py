"""The calls to MLflow that log to a run and store its artifacts, made once before a GPU is requested.

Promises: the run stays as it is but for one small artifact. The calls for logged models and the model registry are in
`components/registry/rehearsal.py`.
"""

import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from components.errors import BadInput, TrackingCallMissing, TrackingRefused
from components.tracking.client import Run, Tracking
from components.tracking.tags import TAG_KIND

METRIC = "preflight/seconds"
REHEARSAL_FILE = "preflight.txt"
REHEARSAL_TEXT = "Written by the preflight of celebdit, to see that artifacts can be uploaded.\n"
_KIND = "preflight"
_LOCAL_SCHEMES = ("", "file")


def rehearse_run(tracking: Tracking, run: Run) -> None:
    """Make every kind of call of the later steps that is about a run, for `run`.

    Raises:
        BadInput: naming the right or the call that is missing, or what is wrong with the artifact store.
    """
    client, run_id = tracking.client, run.info.run_id
    kind = run.data.tags.get(TAG_KIND, _KIND)
    with tracking.translate_errors():
        client.set_tag(run_id, TAG_KIND, kind)
    try:
        with tracking.translate_errors():
            client.log_inputs(run_id, datasets=[])
    except TrackingCallMissing:
        raise
    except TrackingRefused:  # a server that wants a dataset (MLflow 2.22) offers the call
        pass
    tracking.set_tags(run_id, {TAG_KIND: kind})
    tracking.logged_steps(run_id, METRIC)
    _rehearse_artifacts(tracking, run_id, root=str(run.info.artifact_uri))


def _rehearse_artifacts(tracking: Tracking, run_id: str, *, root: str) -> None:
    """Upload an artifact, list it and read it; MLflow's client says of a read by the id of the run neither what failed nor why."""
    server_uri = tracking.settings.mlflow_uri
    tracking.log_text(run_id, REHEARSAL_TEXT, REHEARSAL_FILE)
    is_listed = REHEARSAL_FILE in tracking.artifact_paths(run_id, "")
    with tempfile.TemporaryDirectory(prefix="celebdit-") as folder, tracking.translate_errors():
        repository = get_artifact_repository(root, tracking_uri=server_uri)
        if not is_listed or Path(repository.download_artifacts(REHEARSAL_FILE, folder)).read_bytes() != REHEARSAL_TEXT.encode():
            raise BadInput(
                f"MLflow at {server_uri} does not return the artifact that was uploaded to it",
                hint="check its artifact store (--artifacts-destination) and any proxy before the server",
            )
    if urlsplit(root).scheme in _LOCAL_SCHEMES and not _server_lists(tracking, run_id):
        raise BadInput(
            f"MLflow at {server_uri} does not see the artifacts of experiment {tracking.settings.experiment!r}: their place is the folder "
            f"{root!r}, and what is written there stays on the disk of this machine",
            hint="let the server serve artifacts (--artifacts-destination) or keep them in S3 (--default-artifact-root s3://...), then set "
            "CELEBDIT_EXPERIMENT to a new one: an experiment keeps its place",
        )


def _server_lists(tracking: Tracking, run_id: str) -> bool:
    """Return whether the server itself finds the artifact of a run where it lists artifacts for its pages."""
    uri = tracking.settings.mlflow_uri
    with tracking.translate_errors():
        answer = http_request(get_default_host_creds(uri), "/api/2.0/mlflow/artifacts/list", "GET", params={"run_id": run_id})
    return answer.status_code == 200 and f'"{REHEARSAL_FILE}"' in answer.text
