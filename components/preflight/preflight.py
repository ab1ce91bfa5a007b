"""The preflight step: storage, MLflow, credentials, weights, disk, memory and GPUs, checked in seconds; opens the pipeline's MLflow run.

Promises: every check says what it found, and a failing one what to do; nothing is left behind in storage. Kubernetes itself is checked by
`celebdit doctor`.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from components.environment import CREDENTIALS
from components.errors import BadInput
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.settings import has_key_pair, missing_credentials
from components.storage import StoreUri
from components.storage.probe import probe

_SPARE_BYTES = 2**30
_NO_WEIGHTS = "upload the file, or do without Inception: evaluation.extractor=random-conv (and leave out gate bounds on eval/fid_...)"


def run(
    resources: ResourcesConfig,
    weights: str | None,
    context: StepContext,
    *,
    vgg_weights: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check everything and return what was found, one line per check.

    Raises:
        BadInput: naming the first thing that a run would stumble over. TemporaryFailure: if a server does not answer.
    """
    found = {"credentials": _check_credentials(environ), "storage": _check_storage(context)}
    if weights is not None:
        found["weights"] = _check_weights(weights, context)
    if vgg_weights is not None:
        found["vgg_weights"] = _check_weights(vgg_weights, context)
    found["disk"] = _check_disk(context.scratch())
    found["devices"] = _check_devices(resources)
    found["mlflow"] = _open_run(context)
    for name, line in found.items():
        context.events.note(f"{name}: {line}")
    return found


def _check_credentials(environ: Mapping[str, str] | None) -> str:
    if missing := missing_credentials(environ):
        raise BadInput(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            hint="give the step the S3 secret (docs/kubernetes.md), or export them",
        )
    return f"{CREDENTIALS[0]} and {CREDENTIALS[1]} are set" if has_key_pair(environ) else "from the environment's credential provider"


def _check_storage(context: StepContext) -> str:
    found = probe(context.store, context.root)
    conditions = "honoured" if found.conditional_writes else "ignored (not needed)"
    uploads = "checked by the store" if found.upload_check == "content-md5" else "read back"
    return f"{context.root} can be written and read ({found.addressing}-style); uploads are {uploads}; conditional writes are {conditions}"


def _check_weights(weights: str, context: StepContext) -> str:
    there = context.store.exists(StoreUri.parse(weights)) if weights.startswith("s3://") else Path(weights).is_file()
    if not there:
        raise BadInput(f"evaluation.weights {weights} does not exist", hint=_NO_WEIGHTS)
    return f"{weights} is there"


def _check_disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < _SPARE_BYTES:
        raise BadInput(
            f"{folder} has {free / 1e9:.1f} GB free, at least {_SPARE_BYTES / 1e9:.1f} GB are needed",
            hint="free some, or set CELEBDIT_WORK_DIR",
        )
    return f"{free / 1e9:.0f} GB free in {folder}"


def _check_devices(resources: ResourcesConfig) -> str:
    cores = os.cpu_count() or 1
    wanted = resources.processes * resources.threads
    crowded = f", more than its {cores} cores: expect slow steps" if resources.device == "cpu" and wanted > cores else ""
    return f"{resources.processes} process(es) x {resources.threads} thread(s) on device {resources.device}{crowded}"


def _open_run(context: StepContext) -> str:
    tracking = context.tracking
    run_id = tracking.pipeline_run().info.run_id
    tracking.set_status(run_id, "RUNNING")
    url = tracking.run_url(run_id)
    context.events.say("result", manifest={"tracking_uri": context.settings.mlflow_uri, "run_id": run_id, "run_url": url})
    return url
