"""Check what `celebdit run` needs on this machine."""

import shutil
import sys
from pathlib import Path

from components.command_settings import CommandSettings
from components.environment import MLFLOW, STORE
from components.errors import BadInput
from components.system.confinement import can_confine
from pipeline.config import RunConfig
from pipeline.container_engine import engine_address
from pipeline.doctor.checks import Check, run_check
from pipeline.doctor.mlflow import check_own_mlflow

_SPARE_BYTES = 5 * 2**30


def check_machine(home: Path, settings: CommandSettings, config: RunConfig) -> list[Check]:
    """Check what `celebdit run` of `config` needs on this machine."""
    return [
        *run_check("python", lambda: Check("python", "ok", sys.version.split()[0])),
        *run_check("disk", lambda: _disk(home)),
        *run_check("endpoints", lambda: _endpoints(settings)),
        *(run_check("mlflow", lambda: check_own_mlflow(config.registry.model_name)) if len(settings.endpoints) == 2 else []),
        *run_check("storage", lambda: _storage(settings)),
        *run_check("parsers", _parsers),
        *run_check("containers", _containers),
    ]


def _disk(home: Path) -> Check:
    folder = next(parent for parent in (home.absolute(), *home.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    space = f"{free / 1e9:.0f} GB free in {folder}"
    return (
        Check("disk", "ok", space)
        if free >= _SPARE_BYTES
        else Check("disk", "fail", space, f"needs {_SPARE_BYTES / 1e9:.0f} GB: free some space, or choose another --home")
    )


def _endpoints(settings: CommandSettings) -> Check:
    configured = settings.endpoints
    if len(configured) == 1:
        return Check("endpoints", "fail", f"only {configured[0]} is set", f"set {STORE} and {MLFLOW}, or neither")
    return Check(
        "endpoints", "ok", f"your own servers: {STORE} and {MLFLOW}" if configured else "not configured: the embedded servers are used"
    )


def _storage(settings: CommandSettings) -> list[Check]:
    """Check the store of one's own servers; the embedded one is started by the run."""
    if settings.store_uri is None or settings.mlflow_uri is None:
        return []
    # boto3 takes half a second to import, and the embedded server needs no check.
    from pipeline.doctor.servers import check_store  # noqa: PLC0415

    return [check_store(settings.s3_endpoint, settings.store_uri, whose="the credentials of this shell")]


def _parsers() -> Check:
    if can_confine():
        return Check("parsers", "ok", "images and tar archives are parsed without access to files, the network and other processes")
    return Check(
        "parsers", "unknown", "this system cannot confine parsers of images and archives", "ingest images of strangers in a container"
    )


def _containers() -> Check:
    try:
        with engine_address() as address:
            return Check("containers", "ok", f"container engine at {address}" if "celebdit-podman" not in address else "podman works")
    except BadInput as error:
        return Check("containers", "unknown", error.message, "only needed for --runner container")
