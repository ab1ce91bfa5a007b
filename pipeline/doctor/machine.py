"""Check what `celebdit run` needs on this machine."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from components.command_settings import CommandSettings
from components.environment import MLFLOW, STORE
from components.errors import BadInput
from components.ingest.sources.open_source import kind_of
from components.reports.plural import plural
from components.system.confinement import can_confine
from pipeline.config import RunConfig
from pipeline.container_engine import engine_address
from pipeline.doctor.checks import Check, run_check
from pipeline.doctor.licence import check_licence
from pipeline.doctor.mlflow import check_own_mlflow
from pipeline.doctor.requests import quantity

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
        *run_check("licence", lambda: check_licence(config)),
        *run_check("devices", lambda: _devices(config)),
        *run_check("memory", lambda: _memory(config)),
        *run_check("source", lambda: _source(config)),
        *(run_check("weights", lambda: _weights(home, settings, config)) if config.evaluation.weights_sha256 else []),
    ]


def _devices(config: RunConfig) -> Check:
    processes, gpus = config.resources.processes, len(list(Path("/dev").glob("nvidia[0-9]*")))
    if config.resources.device == "cuda" and gpus < processes:
        fix = "run it on a machine with GPUs (celebdit submit), or set resources.device=cpu, which takes very long for the large presets"
        return Check(
            "devices",
            "fail",
            f"resources.device is cuda with {plural(processes, 'process', 'processes')}, and this machine has {plural(gpus, 'GPU')}",
            fix,
        )
    return Check("devices", "ok", f"{plural(gpus, 'GPU')}; resources.device is {config.resources.device}")


def _memory(config: RunConfig) -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    required = quantity(config.resources.memory)
    size = f"{total / 2**30:.0f} GiB"
    if total < required and config.resources.device == "cuda":
        return Check("memory", "unknown", f"{size}, and resources.memory is {config.resources.memory}", "watch it, or use a larger machine")
    return Check("memory", "ok", size)


def _source(config: RunConfig) -> Check:
    kind = kind_of(config.data.source)
    package = {"kaggle": "kagglehub", "hf": "huggingface_hub"}.get(config.data.source.partition("://")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        return Check("source", "fail", f"{config.data.source} needs the package {package}", "make extras")
    if kind.local_path is not None and not kind.local_path(config.data.source).exists():
        return Check("source", "fail", f"data.source {config.data.source} does not exist", "set data.source")
    return Check("source", "ok", config.data.source)


def _weights(home: Path, settings: CommandSettings, config: RunConfig) -> Check:
    """Look for the weights where that needs no server: at a path, or on the disk of the embedded store."""
    location, sha256 = config.evaluation.weights, config.evaluation.weights_sha256
    fix = "celebdit weights add FILE (docs/evaluation.md), or evaluation.extractor=random-conv"
    if location is not None:
        exists = "://" in location or Path(location).is_file()
        return (
            Check("weights", "ok", location) if exists else Check("weights", "fail", f"evaluation.weights {location} does not exist", fix)
        )
    if settings.store_uri is not None:
        return Check("weights", "unknown", f"sha256 {sha256} in {settings.store_uri}: preflight checks it", fix)
    if any((home / "s3").glob(f"*/*/weights/{sha256}.pth")):
        return Check("weights", "ok", f"sha256 {sha256} is in the embedded store")
    return Check("weights", "fail", f"the weights with sha256 {sha256} are not in the embedded store", fix)


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
