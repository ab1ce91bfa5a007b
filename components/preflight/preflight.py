"""The preflight step: storage, MLflow, credentials, clock, weights, disk and devices, checked in seconds; opens the pipeline's MLflow run.

Promises: every check reports its result, and a failing one what to do; no objects are left in storage. The calls to MLflow that later steps
need are made once, so that a server that is too old and a right that is missing are reported before a GPU is used. Does not check
Kubernetes; see `celebdit doctor`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.environment import CREDENTIALS
from components.errors import BadInput
from components.preflight.metric_weights import check_metric_weights
from components.registry.config import RegistryConfig
from components.reports.plural import plural
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.settings import has_key_pair, missing_credentials
from components.storage.clock import check_clock
from components.storage.credentials import credential_source
from components.storage.probe import probe
from components.system.disk import RUN_BYTES, RUN_FILES, free_bytes, require_room
from components.tracking.server_version import check_server_version
from components.tracking.tags import CONFIG_FILE

if TYPE_CHECKING:
    from components.tracking.client import Run

_VGG16 = "vgg16"

_ABOUT_SERVERS = ("credentials", "clock", "storage", "bucket", "mlflow_calls")
"""Checks that are not shown where they pass and the servers are embedded: there is nothing to set."""


def run(
    resources: ResourcesConfig,
    weights: str | None,
    context: StepContext,
    *,
    model_name: str | None = None,
    vgg_weights: str | None = None,
    weights_sha256: str | None = None,
    vgg_weights_sha256: str | None = None,
    extractor: str = "inception-v3-compat",
    configuration: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check everything, store `configuration` as an artifact of the MLflow run, and return one line per check.

    Raises:
        BadInput: naming the first problem. TemporaryFailure: if a server does not answer.
    """
    results = {
        "credentials": check_credentials(environ),
        "clock": check_clock(context.store, context.root),
    }
    results["storage"], results["bucket"] = _check_storage(context)
    if weights is not None or weights_sha256 is not None:
        results["weights"] = check_metric_weights(weights, weights_sha256, extractor, context, setting="weights")
    if vgg_weights is not None or vgg_weights_sha256 is not None:
        results["vgg_weights"] = check_metric_weights(vgg_weights, vgg_weights_sha256, _VGG16, context, setting="vgg_weights")
    results["disk"] = _check_disk(context.scratch())
    results["devices"] = _check_devices(resources)
    version = check_server_version(context.settings.mlflow_uri)
    run, results["mlflow"] = _open_run(context)
    results["mlflow_calls"] = _rehearse_calls(context, run, model_name or RegistryConfig().model_name, version)
    if configuration is not None:
        context.tracking.log_text(run.info.run_id, configuration, CONFIG_FILE)
    embedded = context.settings.own_servers is not None
    for name, line in results.items():
        if not embedded or name not in _ABOUT_SERVERS:
            context.events.note(f"{name}: {line}")
    return results


def check_credentials(environ: Mapping[str, str] | None) -> str:
    """Check that boto3 will find credentials for object storage, and return where.

    Raises:
        BadInput: if it finds none.
    """
    if missing := missing_credentials(environ):
        source = credential_source()
        if source in (None, "env"):
            raise BadInput(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
                hint="attach the S3 secret to the step or give its account a role (docs/kubernetes.md), or export them",
            )
        return f"found by boto3 ({source})"
    return f"{CREDENTIALS[0]} and {CREDENTIALS[1]} are set" if has_key_pair(environ) else "from the environment's credential provider"


def _check_storage(context: StepContext) -> tuple[str, str]:
    """Return what the store supports, and what is set for the bucket."""
    report = probe(context.store, context.root)
    return f"{context.root} can be written and read ({report.describe()})", report.bucket.describe()


def _check_disk(folder: Path) -> str:
    free = free_bytes(folder)
    require_room(folder, "a run", RUN_BYTES, needed_files=RUN_FILES)
    return f"{free / 1e9:.0f} GB free in {folder}"


def _check_devices(resources: ResourcesConfig) -> str:
    cores = os.cpu_count() or 1
    threads = resources.processes * resources.threads
    crowded = f", more than its {cores} cores: expect slow steps" if resources.device == "cpu" and threads > cores else ""
    processes = plural(resources.processes, "process", "processes")
    return f"{processes} x {plural(resources.threads, 'thread')} on device {resources.device}{crowded}"


def _open_run(context: StepContext) -> tuple["Run", str]:
    tracking = context.tracking
    run = tracking.pipeline_run()
    run_id = run.info.run_id
    tracking.set_status(run_id, "RUNNING")
    url = tracking.run_url(run_id)
    context.events.emit("result", manifest={"tracking_uri": context.settings.mlflow_uri, "run_id": run_id, "run_url": url})
    return run, url


def _rehearse_calls(context: StepContext, run: "Run", model_name: str, version: str | None) -> str:
    from components.registry.rehearsal import rehearse  # noqa: PLC0415 - imports MLflow, which takes seconds

    rehearse(context.tracking, run, model_name)
    server = f"MLflow {version}" if version else "MLflow of an unknown version"
    return f"{server} accepts logged models, artifacts and versions of {model_name!r} from this user"
