"""Find a training by what people write: its run key or its first characters, a run id, or the id of the run in MLflow.

Imports no MLflow.
"""

import re
from typing import TYPE_CHECKING

from components.errors import BadInput
from components.reports.listing import list_some
from components.tracking.tags import TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP

if TYPE_CHECKING:
    from components.tracking.client import Run, Tracking

_RUN_KEY, _PREFIX, _MLFLOW_ID = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{4,15}"), re.compile(r"[0-9a-f]{32}")
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]+")


def find_run_key(name: str, tracking: "Tracking") -> str | None:
    """Return the run key of the training that `name` refers to, or None if MLflow has none; a complete run key is not looked up.

    Raises:
        BadInput: if `name` begins several run keys.
    """
    if _RUN_KEY.fullmatch(name):
        return name
    if _PREFIX.fullmatch(name) and (keys := [key for key in _run_keys(tracking) if key.startswith(name)]):
        if len(keys) > 1:
            raise BadInput(f"{name!r} begins {len(keys)} run keys: {list_some(keys)}", hint="give more of its characters")
        return keys[0]
    if _MLFLOW_ID.fullmatch(name):
        runs = tracking.search_runs({TAG_STEP: "train"}) + tracking.search_runs({TAG_KIND: "pipeline"})
        return _first_key([run for run in runs if run.info.run_id == name])
    pipelines = tracking.search_runs({TAG_RUN: name, TAG_KIND: "pipeline"}) if _RUN_ID.fullmatch(name) else []
    return _first_key(pipelines)


def require_run_key(name: str, tracking: "Tracking") -> str:
    """Return the run key of the training that `name` refers to; a complete run key is not looked up.

    Raises:
        BadInput: if MLflow has no such training, with the run keys that it has, or if `name` begins several run keys.
    """
    key = find_run_key(name, tracking)
    if key is None:
        raise _no_training(name, tracking)
    return key


def find_training_run(name: str, tracking: "Tracking") -> "Run":
    """Return the MLflow run of the training that `name` refers to.

    Raises:
        BadInput: as `require_run_key`, or if the run of the training was deleted in MLflow.
    """
    run = tracking.training_run(require_run_key(name, tracking))
    if run is None:
        raise _no_training(name, tracking)
    return run


def _first_key(runs: "list[Run]") -> str | None:
    """Return the run key of the first of `runs` that has any: a pipeline run may have several, separated by commas."""
    return next((key for run in runs for key in run.data.tags.get(TAG_RUN_KEY, "").split(",") if key), None)


def _run_keys(tracking: "Tracking") -> list[str]:
    return sorted({run.data.tags[TAG_RUN_KEY] for run in tracking.search_runs({TAG_STEP: "train"}) if TAG_RUN_KEY in run.data.tags})


def _no_training(name: str, tracking: "Tracking") -> BadInput:
    return BadInput(f"MLflow has no training run {name!r}", hint=f"known run keys: {list_some(_run_keys(tracking)) or 'none'}")
