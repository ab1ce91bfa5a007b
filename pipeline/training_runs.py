"""Find a training in MLflow by what people write: its run key or its first characters, a run id, or MLflow's own id."""

import re
from typing import TYPE_CHECKING

from components.errors import BadInput
from components.tracking.tags import TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.tracking.client import Run

_RUN_KEY, _PREFIX, _MLFLOW_ID = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{4,15}"), re.compile(r"[0-9a-f]{32}")


def find_training_run(name: str, context: "StepContext") -> "Run":
    """Return the MLflow run of the training that `name` refers to.

    Raises:
        BadInput: if MLflow has none, with the run keys that it has.
    """
    tracking = context.tracking
    if _RUN_KEY.fullmatch(name):
        candidates = tracking.search_runs({TAG_STEP: "train", TAG_RUN_KEY: name})
    elif _PREFIX.fullmatch(name):
        trainings = tracking.search_runs({TAG_STEP: "train"})
        candidates = [run for run in trainings if run.data.tags.get(TAG_RUN_KEY, "").startswith(name)]
        if len(keys := sorted({run.data.tags[TAG_RUN_KEY] for run in candidates})) > 1:
            raise BadInput(f"{name!r} begins {len(keys)} run keys: {', '.join(keys[:20])}", hint="give more of its characters")
    elif _MLFLOW_ID.fullmatch(name):
        candidates = [run for run in tracking.search_runs({TAG_STEP: "train"}) if run.info.run_id == name]
    elif re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        pipelines = tracking.search_runs({TAG_RUN: name, TAG_KIND: "pipeline"})
        keys = [key for run in pipelines for key in run.data.tags.get(TAG_RUN_KEY, "").split(",") if key]
        candidates = tracking.search_runs({TAG_STEP: "train", TAG_RUN_KEY: keys[0]}) if keys else []
    else:
        candidates = []
    if not candidates:
        run_keys = sorted({run.data.tags[TAG_RUN_KEY] for run in tracking.search_runs({TAG_STEP: "train"}) if TAG_RUN_KEY in run.data.tags})
        raise BadInput(f"MLflow has no training run {name!r}", hint=f"known run keys: {', '.join(run_keys[:20]) or 'none'}")
    return min(candidates, key=lambda run: run.info.start_time)
