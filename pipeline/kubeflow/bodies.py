"""Bodies of requests to Kubeflow Pipelines, and which of their fields a server knows. Pure; the requests are made in `server.py`."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import kfp_server_api

from components.errors import BadInput

_FIRST_WITH_PLUGINS = (2, 17)
PluginsInput = Mapping[str, Any]
"""Plugin of the server -> its input."""


@dataclass(frozen=True)
class Version:
    """An uploaded version of the pipeline."""

    pipeline_id: str
    version_id: str
    is_new: bool


def knows_plugins(server_version: str | None) -> bool:
    """Return whether a server has plugins and tags, by its version, such as 2.17.0; one that does not give a version has neither."""
    match = re.match(r"v?(\d+)\.(\d+)", server_version or "")
    return match is not None and (int(match[1]), int(match[2])) >= _FIRST_WITH_PLUGINS


def run_body(name: str, experiment_id: str, version: Version, parameters: Mapping[str, str] | None) -> Any:
    """Return a run of `version`."""
    return kfp_server_api.V2beta1Run(
        display_name=name,
        experiment_id=experiment_id,
        pipeline_version_reference=_reference(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(parameters or {})),
    )


def mlflow_plugin(experiment: str) -> PluginsInput:
    """Return the input with which KFP's MLflow plugin opens its run in `experiment`."""
    return {"mlflow": {"experiment_name": experiment}}


def create_with_plugins(create: Callable[[], Any], body: Any, plugins: PluginsInput) -> Any:
    """Create the run or recurring run of `body` with this input for plugins; without it where they are not set up."""
    body.plugins_input = dict(plugins)
    try:
        return create()
    except BadInput as refused:
        if "plugin" not in refused.message.lower():
            raise
        body.plugins_input = None
        return create()


def schedule_body(name: str, experiment_id: str, version: Version, *, cron: str | None, every_s: int | None) -> Any:
    """Return a recurring run of `version`, one at a time, by a cron expression or an interval."""
    trigger = kfp_server_api.V2beta1Trigger(
        cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=cron) if cron else None,
        periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(every_s)) if every_s else None,
    )
    return kfp_server_api.V2beta1RecurringRun(
        display_name=name,
        experiment_id=experiment_id,
        pipeline_version_reference=_reference(version),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters={}),
        max_concurrency="1",
        no_catchup=True,
        mode="ENABLE",
        trigger=trigger,
    )


def has_timing(recurring_run: Any, *, cron: str | None, every_s: int | None) -> bool:
    """Return whether a recurring run starts its runs by this cron expression or interval: several expressions share a name."""
    trigger = recurring_run.trigger
    if trigger is None:
        return False
    by_cron, periodic = trigger.cron_schedule, trigger.periodic_schedule
    if cron is not None:
        return by_cron is not None and by_cron.cron.lower().split() == cron.lower().split()
    return periodic is not None and str(periodic.interval_second) == str(every_s)


def name_filter(name: str) -> str:
    """Return the filter of a listing for the objects called `name`."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _reference(version: Version) -> Any:
    return kfp_server_api.V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id)
