"""What `celebdit run` needs on this machine."""

import shutil
import sys
from pathlib import Path

from components.environment import MLFLOW, STORE
from components.errors import BadInput
from components.settings import CommandSettings
from pipeline.containers import engine_address
from pipeline.doctor.checks import Check, checked

_SPARE_BYTES = 5 * 2**30


def check_machine(home: Path, settings: CommandSettings) -> list[Check]:
    """Check what `celebdit run` needs here."""
    return [
        *checked("python", lambda: Check("python", "ok", sys.version.split()[0])),
        *checked("disk", lambda: _disk(home)),
        *checked("endpoints", lambda: _endpoints(settings)),
        *checked("containers", _containers),
    ]


def _disk(home: Path) -> Check:
    folder = next(parent for parent in (home.absolute(), *home.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.0f} GB free in {folder}"
    return Check("disk", "ok", found) if free >= _SPARE_BYTES else Check("disk", "fail", found, "free some, or choose another --home")


def _endpoints(settings: CommandSettings) -> Check:
    given = settings.endpoints
    if len(given) == 1:
        return Check("endpoints", "fail", f"only {given[0]} is set", f"set {STORE} and {MLFLOW}, or neither")
    return Check("endpoints", "ok", f"servers of yours: {STORE} and {MLFLOW}" if given else "none set: the embedded servers are used")


def _containers() -> Check:
    try:
        with engine_address() as address:
            return Check("containers", "ok", f"an engine answers at {address}" if "celebdit-podman" not in address else "podman works")
    except BadInput as error:
        return Check("containers", "unknown", error.message, "only needed for --runner container")
