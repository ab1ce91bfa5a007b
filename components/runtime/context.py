"""What a step is given to work with, and the frame that every step runs in.

Promises: inside `step(...)` an error meant for people is told as one line and ends the process with its exit code, anything else with a
traceback and 70; events say when the step began and how it ended; secrets are masked in both.
"""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import ValidationError

from components.errors import BUG_HINT, BadInput, CelebditError, Failure
from components.manifests import Manifest
from components.runtime.events import Events
from components.runtime.redact import redactor
from components.settings import Settings, events_path
from components.storage import ObjectStore, StoreUri, connect
from model.config import FrozenConfig

if TYPE_CHECKING:
    from components.tracking.client import Tracking

C = TypeVar("C", bound=FrozenConfig)


@dataclass(frozen=True)
class StepContext:
    """The doors to the outside world, opened when they are first used."""

    settings: Settings
    events: Events

    @cached_property
    def store(self) -> ObjectStore:
        return connect(self.settings.s3_endpoint, deadline_s=self.settings.storage_deadline_s)

    @cached_property
    def root(self) -> StoreUri:
        """The location below which everything is stored."""
        return StoreUri.parse(self.settings.store_uri)

    @cached_property
    def tracking(self) -> "Tracking":
        # Importing MLflow takes seconds; a step that finds its work done may never need it.
        from components.tracking.client import Tracking  # noqa: PLC0415

        return Tracking(self.settings)

    def hand_on(self, manifest: Manifest, artifact: Any) -> None:
        """Write `manifest` into a KFP output artifact, with what identifies it as metadata, and tell it as this step's result."""
        manifest.dump(Path(artifact.path))
        facts = manifest.model_dump(mode="json")
        # KFP turns numbers in metadata into floats, so only texts go there.
        artifact.metadata.update({key: value for key, value in facts.items() if isinstance(value, str)})
        self.events.say("result", manifest=facts)

    def scratch(self, *parts: str) -> Path:
        """Return a folder below the work directory, made if needed."""
        folder = self.settings.work_dir.joinpath(*parts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"{folder} cannot be made: {error.strerror}", hint="set CELEBDIT_WORK_DIR to a folder that can be written"
            ) from error
        return folder


@contextmanager
def step(name: str, environ: Mapping[str, str] | None = None) -> Iterator[StepContext]:
    """Frame the body of step `name`; leaves the process with the right exit code if it fails. By default it reads its own environment."""
    redact = redactor(environ)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    events = Events(name, events_path(environ), redact=redact)
    events.say("started")
    try:
        yield StepContext(settings=Settings.from_environment(environ), events=events)
    except Exception as error:
        failure = Failure.of(error)
        if isinstance(error, CelebditError):
            _fail(events, failure, redact)
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
        _fail(events, replace(failure, hint=BUG_HINT), redact)
    else:
        events.say("finished")


def _fail(events: Events, failure: Failure, redact: Callable[[str], str]) -> NoReturn:
    message = redact(failure.message)
    events.say("failed", exit_code=failure.exit_code, message=message, hint=failure.hint)
    with suppress(BrokenPipeError):  # whoever read our output may have been stopped before us
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


def describe(error: ValidationError, *, section: str) -> str:
    """Return the first problem of a validation error as one line."""
    first = error.errors()[0]
    where = ".".join([section, *(str(part) for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}"
    if first["type"] == "missing":
        return f"{where} is missing"
    given = first.get("input")
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] == "value_error" and isinstance(given, dict) else f" (given: {given!r})"[:120]
    return f"{where}: {message}{shown}"
