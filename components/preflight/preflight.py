"""The preflight step: storage, MLflow, credentials, clock, weights, disk and devices, checked in seconds; opens the pipeline's MLflow run.

Promises: every check reports its result, and a failing one what to do; no objects are left in storage. Does not check Kubernetes; see
`celebdit doctor`.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from components.environment import CREDENTIALS
from components.errors import BadInput
from components.preflight.metric_weights import check_metric_weights
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.settings import has_key_pair, missing_credentials
from components.storage.clock import check_clock
from components.storage.probe import probe
from components.system.disk import RUN_BYTES, free_bytes, require_room

_VGG16 = "vgg16"


def run(
    resources: ResourcesConfig,
    weights: str | None,
    context: StepContext,
    *,
    vgg_weights: str | None = None,
    weights_sha256: str | None = None,
    vgg_weights_sha256: str | None = None,
    extractor: str = "inception-v3-compat",
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check everything and return one line per check.

    Raises:
        BadInput: naming the first problem. TemporaryFailure: if a server does not answer.
    """
    results = {
        "credentials": _check_credentials(environ),
        "clock": check_clock(context.store, context.root),
        "storage": _check_storage(context),
    }
    if weights is not None:
        results["weights"] = check_metric_weights(weights, weights_sha256, extractor, context, setting="weights")
    if vgg_weights is not None:
        results["vgg_weights"] = check_metric_weights(vgg_weights, vgg_weights_sha256, _VGG16, context, setting="vgg_weights")
    results["disk"] = _check_disk(context.scratch())
    results["devices"] = _check_devices(resources)
    results["mlflow"] = _open_run(context)
    for name, line in results.items():
        context.events.note(f"{name}: {line}")
    return results


def _check_credentials(environ: Mapping[str, str] | None) -> str:
    if missing := missing_credentials(environ):
        raise BadInput(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            hint="attach the S3 secret to the step (docs/kubernetes.md), or export them",
        )
    return f"{CREDENTIALS[0]} and {CREDENTIALS[1]} are set" if has_key_pair(environ) else "from the environment's credential provider"


def _check_storage(context: StepContext) -> str:
    report = probe(context.store, context.root)
    conditions = "honoured" if report.conditional_writes else "ignored (not needed)"
    uploads = "checked by the store" if report.upload_check == "content-md5" else "read back"
    return f"{context.root} can be written and read ({report.addressing}-style); uploads are {uploads}; conditional writes are {conditions}"


def _check_disk(folder: Path) -> str:
    free = free_bytes(folder)
    require_room(folder, "a run", RUN_BYTES)
    return f"{free / 1e9:.0f} GB free in {folder}"


def _check_devices(resources: ResourcesConfig) -> str:
    cores = os.cpu_count() or 1
    threads = resources.processes * resources.threads
    crowded = f", more than its {cores} cores: expect slow steps" if resources.device == "cpu" and threads > cores else ""
    return f"{resources.processes} process(es) x {resources.threads} thread(s) on device {resources.device}{crowded}"


def _open_run(context: StepContext) -> str:
    tracking = context.tracking
    run_id = tracking.pipeline_run().info.run_id
    tracking.set_status(run_id, "RUNNING")
    url = tracking.run_url(run_id)
    context.events.emit("result", manifest={"tracking_uri": context.settings.mlflow_uri, "run_id": run_id, "run_url": url})
    return url
