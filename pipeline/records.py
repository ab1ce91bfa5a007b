"""MLflow's records in the embedded servers' database, opened in this process while no server runs: one takes long to start.

Promises: while the database is open here no server of the same home starts, and it is not opened while one runs; what is created here is
what a server would have created. Artifacts are only read; see `session.py` for commands that write them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from components.command_settings import CommandSettings
from components.environment import MLFLOW, RUN_ID, STORE
from components.runtime.context import StepContext
from components.runtime.events import Events
from components.settings import Settings, experiment_name
from components.storage import StoreUri
from components.tracking.server_version import check_server_version
from pipeline.home import DATABASE, LOCK, hold_lock
from pipeline.server_commands import EMBEDDED_STORE, MLFLOW_ARTIFACTS
from pipeline.server_database import prepare_database
from pipeline.services import Services
from pipeline.session import make_environment, open_session, own_environment

if TYPE_CHECKING:
    from components.tracking.client import Tracking

SCHEME = "sqlite:///"
_PATH = re.compile(r"[A-Za-z0-9/._ +,=@~-]+")
"""A path that MLflow 3.17 takes as it is: it cuts an SQLite address at `?` and decodes `%`."""
_ARTIFACT_ROOT = {"_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/"}
"""Where experiments that are created here keep artifacts: through the server, like those that it creates. A private name of MLflow 3.17."""


class OfflineContext(StepContext):
    """The clients of the embedded servers while MLflow's does not run."""

    @cached_property
    def tracking(self) -> "Tracking":
        from components.tracking.offline import OfflineTracking  # noqa: PLC0415 - imports MLflow

        return OfflineTracking(self.settings, lambda: self.store, StoreUri.parse(MLFLOW_ARTIFACTS))


@contextmanager
def open_records(home: Path, *, artifacts: bool = False) -> Iterator[StepContext]:
    """Yield the clients of MLflow for a command that needs runs and versions alone, or with `artifacts` also reads object storage.

    Servers that are configured or that run are used; with neither, the database of `home` is opened here.

    Raises:
        BadInput: as `open_session`, or if MLflow is too old. TrackingUnavailable: if it does not answer. DataRefused: if the database is
            damaged.
    """
    experiment_name()  # one that MLflow cannot store is refused before a home is made
    services = Services(home)
    if not CommandSettings.from_environment().endpoints and _PATH.fullmatch(str(services.home)):
        services.make_home()
        with services.use(mlflow=False) if artifacts else nullcontext(), hold_lock(services.home / LOCK):
            if "mlflow" not in services.running_servers():
                prepare_database(services.home)
                yield _context(services.home, services.wait_for_storage() if artifacts else {})
                return
    with open_session(home) as session:
        context = session.context()
        check_server_version(context.settings.mlflow_uri)  # one that does not answer is reported within seconds
        yield context


def _context(home: Path, storage: dict[str, str]) -> StepContext:
    from components.tracking.mlflow_errors import translate_mlflow_errors  # noqa: PLC0415 - imports MLflow

    uri = f"{SCHEME}{home / DATABASE}"
    environment = {name: value for name, value in own_environment(home).items() if name != RUN_ID} | storage
    # This process has no endpoints, because there is no server of MLflow.
    make_environment({**{name: value for name, value in environment.items() if name != STORE}, **_ARTIFACT_ROOT})
    settings = Settings.from_environment({STORE: EMBEDDED_STORE, **environment, MLFLOW: "http://localhost"}, in_run=False)
    context = OfflineContext(settings=replace(settings, mlflow_uri=uri), events=Events("celebdit", None))
    with translate_mlflow_errors(uri):
        assert context.tracking is not None, "it opens the database"
    return context
