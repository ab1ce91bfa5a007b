"""Context of a step: settings, clients and events, and the context manager that every step runs in.

Promises: inside `step(...)` a `CelebditError` is printed as one line and ends the process with its exit code, any other exception with a
traceback and 70; events record start and outcome; secrets are masked in both. The process ends with the run that it belongs to.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from components.environment import OWN_SERVERS, WORK_DIR
from components.errors import BUG_HINT, EXIT_BUG, BadInput, CelebditError, Failure, Preempted
from components.manifests import Manifest
from components.process_settings import events_path, lifeline_path, log_level
from components.runtime.events import STOPPED, Events
from components.runtime.logs import configure_logging
from components.runtime.redact import redactor
from components.settings import Settings, default_work_dir
from components.storage.uri import StoreUri
from components.stores.layout import StoreLayout
from components.system.disk import full_disk_is_named
from components.system.failures import os_failure
from components.system.garbage import end_without_search, search_seldom
from components.system.lifeline import watch
from components.system.peers import OwnServers, guard
from components.system.private import private_folder_in_shared
from components.system.service_links import drop_service_links
from components.system.work_folders import WorkFolder
from components.tracking.light_mlflow import lighten_mlflow
from components.validation import describe
from model.frozen_config import FrozenConfig

if TYPE_CHECKING:
    from components.storage import ObjectStore
    from components.tracking.client import Tracking

C = TypeVar("C", bound=FrozenConfig)
_RECORDING_STEPS = ("preflight", "ingest", "evaluate", "gate", "finalize")
"""Steps that write runs, tags and files to MLflow, and neither package nor load a model."""
_STEP_PROCESS = "_KFP_RUNTIME"
"""Set by KFP in a process that runs one step and nothing else."""


@dataclass(frozen=True)
class StepContext:
    """Settings, events and clients of a step; clients connect on first use."""

    settings: Settings
    events: Events

    @cached_property
    def store(self) -> "ObjectStore":
        self._guard()
        from components.storage import connect  # noqa: PLC0415 - imports boto3, which takes 0.3 s; finalize needs no store

        return connect(self.settings.s3_endpoint, deadline_s=self.settings.storage_deadline_s, disk=self.settings.store_disk)

    @cached_property
    def root(self) -> StoreUri:
        """The location below which everything is stored."""
        return StoreUri.parse(self.settings.store_uri)

    @cached_property
    def layout(self) -> StoreLayout:
        """Where everything lies below `root`."""
        return StoreLayout(self.root)

    @cached_property
    def tracking(self) -> "Tracking":
        self._guard()
        # Importing MLflow takes seconds; a step that finds its work done may never need it.
        from components.tracking.client import Tracking  # noqa: PLC0415

        return Tracking(self.settings)

    def with_preset(self, preset: str) -> "StepContext":
        """Return a context with the preset of this run, which a pipeline with several presets knows only when it runs."""
        return StepContext(settings=replace(self.settings, preset=preset), events=self.events)

    def _guard(self) -> None:
        """See to it that the embedded servers are not taken for granted because something answers at their ports."""
        if self.settings.own_servers is not None:
            try:
                guard(OwnServers.parse(self.settings.own_servers))
            except ValueError as error:
                raise BadInput(f"{OWN_SERVERS} is not what celebdit has written", hint="unset it") from error

    def write_manifest(self, manifest: Manifest, artifact: Any) -> None:
        """Write `manifest` into a KFP output artifact, with what identifies it as metadata, and emit it as this step's result."""
        manifest.dump(Path(artifact.path))
        facts = manifest.model_dump(mode="json")
        # KFP turns numbers in metadata into floats, so only texts go there.
        artifact.metadata.update({key: value for key, value in facts.items() if isinstance(value, str)})
        self.events.emit("result", manifest=facts)

    def scratch(self, kind: WorkFolder | None = None, *parts: str) -> Path:
        """Return a folder below that of `kind` in the work folder, or the work folder itself; it is made if needed.

        Raises:
            BadInput: if it cannot be made.
            ValueError: if `kind` is not one of `WorkFolder`.
        """
        folder = self.settings.work_dir.joinpath(*([] if kind is None else [WorkFolder(kind)]), *parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{folder} cannot be made: {error.strerror}", hint="set CELEBDIT_WORK_DIR to a folder that can be written"
            ) from error
        return folder

    def run_folder(self, run_key: str) -> Path:
        """Return the folder of a training on this machine: checkpoints, journal and locks."""
        return self.scratch(WorkFolder.RUNS, run_key)


@contextmanager
def step(name: str, environ: Mapping[str, str] | None = None) -> Iterator[StepContext]:
    """Frame the body of step `name`; leaves the process with the right exit code if it fails. By default it reads its own environment."""
    if environ is None:
        drop_service_links()
    if os.environ.get(_STEP_PROCESS):
        end_without_search()
        if name in (*_RECORDING_STEPS, "train"):  # ranks hold the tensors, and evaluate when it measures
            search_seldom()
        if name in _RECORDING_STEPS:
            lighten_mlflow()
    if (lifeline := lifeline_path(environ)) is not None:
        watch(lifeline)
    redact = redactor(environ)
    events = Events(name, events_path(environ), redact=redact)
    try:
        configure_logging(log_level(environ) or logging.INFO, events=events if events_path(environ) else None)
        events.emit("started")
        settings = Settings.from_environment(environ)
        if settings.work_dir == default_work_dir():
            private_folder_in_shared(settings.work_dir, ours=tuple(WorkFolder), hint=f"set {WORK_DIR} to a folder of your own")
        with full_disk_is_named(settings.work_dir):
            yield StepContext(settings=settings, events=events)
    except Exception as error:
        failure = Failure.of(os_failure(error) or error)
        if isinstance(error, CelebditError):
            _fail(events, failure, redact)
        if failure.exit_code != EXIT_BUG:
            logging.getLogger(__name__).info("the step ended", exc_info=error)
            _fail(events, failure, redact)
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
        _fail(events, replace(failure, hint=BUG_HINT), redact)
    else:
        events.emit("finished")


def _fail(events: Events, failure: Failure, redact: Callable[[str], str]) -> NoReturn:
    message = redact(failure.message)
    with suppress(OSError):  # a full disk takes no event either
        stopped = {STOPPED: True} if failure.kind == Preempted.__name__ else {}
        events.emit("failed", exit_code=failure.exit_code, message=message, hint=failure.hint, **stopped)
    with suppress(OSError):  # the reader of our output may have ended first, or its disk is full
        print(f"{events.step}: {message}" + (f"\n  {failure.hint}" if failure.hint else ""), file=sys.stderr, flush=True)
    raise SystemExit(failure.exit_code)


def read_section(kind: type[C], text: str, *, name: str) -> C:
    """Validate a configuration section that arrived as canonical JSON.

    Raises:
        BadInput: naming section, field, value and bound.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(describe(error, section=name)) from error
