"""Make a plan: look into the store without starting a server, and estimate what is left to do."""

from pathlib import Path

from components.command_settings import CommandSettings
from components.errors import CelebditError
from components.storage import StoreUri, connect
from components.storage.reader import StoredFolder
from components.stores.layout import StoreLayout
from components.stores.measured_speed import MeasuredSpeed, find_speed
from pipeline.config import RunConfig
from pipeline.planning.costs import costs_of, unknown_parts
from pipeline.planning.report import Plan
from pipeline.planning.steps import StoreView, plan_steps
from pipeline.server_commands import EMBEDDED_STORE

_DEADLINE_S = 10.0
"""Of a call to object storage: a plan without it is better than none."""


def make_plan(config: RunConfig, *, home: Path, settings: CommandSettings, title: str, command: str) -> Plan:
    """Return the plan of a run with `config`; `command` starts it."""
    view = _view(home, settings)
    planned = plan_steps(config, view)
    costs = costs_of(
        config,
        planned.dataset,
        done_steps=planned.done_steps,
        is_evaluated=planned.is_evaluated,
        measured=lambda device: measured_speed(config, device, view),
    )
    return Plan(title, config, planned, costs, tuple(unknown_parts(config, planned.dataset, costs)), command)


def measured_speed(config: RunConfig, device: str, view: StoreView) -> MeasuredSpeed | None:
    """Return how fast a finished run with the network and numerics of `config` was on `device`, if the store holds one."""
    if view.reader is None:
        return None
    return find_speed(config.recipe, config.resources, device, view.reader, view.layout)


def _view(home: Path, settings: CommandSettings) -> StoreView:
    """Return the configured store, or the files of the embedded one, which are there whether its server runs or not."""
    if settings.store_uri is None:
        return StoreView(StoredFolder(home.absolute() / "s3"), StoreLayout(StoreUri.parse(EMBEDDED_STORE)))
    layout = StoreLayout(StoreUri.parse(settings.store_uri))
    try:
        return StoreView(connect(settings.s3_endpoint, deadline_s=_DEADLINE_S), layout)
    except CelebditError as error:
        return StoreView(None, layout, str(error))
