"""A step's context on test servers, without a pipeline around it."""

from pathlib import Path

from celebdit_testing.waiting import wait_until

from components.runtime.context import StepContext
from components.runtime.events import EventReader, Events
from components.settings import Settings
from components.storage import ObjectStore, StoreUri


def step_context(
    step: str, folder: Path, store_uri: str, *, endpoint: str | None, mlflow_uri: str = "http://127.0.0.1:9", run_id: str = "run-1"
) -> StepContext:
    folder.mkdir(parents=True, exist_ok=True)  # whoever starts a step has made the place of its events
    settings = Settings(
        store_uri=store_uri,
        mlflow_uri=mlflow_uri,
        s3_endpoint=endpoint,
        experiment="tests",
        run_id=run_id,
        run_url=None,
        preset="test",
        work_dir=folder / "work",
        events_path=folder / "events.jsonl",
        git_commit="abc",
        image_digest=None,
    )
    return StepContext(settings=settings, events=Events(step, settings.events_path))


def notes(context: StepContext) -> list[str]:
    assert context.settings.events_path is not None
    return [event.facts["text"] for event in EventReader(context.settings.events_path).read() if event.kind == "note"]


def keys_below(store: ObjectStore, prefix: StoreUri) -> list[str]:
    return [item.uri.relative_to(prefix) for item in store.list(prefix)]


def wait_until_settled(store: ObjectStore, prefix: StoreUri) -> None:
    """Wait until listings and single objects agree: rclone may list what was just written with another time than it reads it with."""
    wait_until(lambda: all(item.is_same(store.describe(item.uri)) for item in store.list(prefix)), timeout_s=30)
