"""`celebdit ingest`: a source of images becomes a data set, without the rest of the pipeline."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from components.ingest.config import DataConfig
from components.ingest.sources.open_source import open_source, require_consent
from components.manifests import DatasetManifest
from components.runtime.context import StepContext
from components.runtime.events import Event, Events, Kind, SayOnce
from components.runtime.redact import redactor
from components.storage import StoreUri
from pipeline.commands.options import command_name, home_option, json_option, print_json, say
from pipeline.config import load_data
from pipeline.session import Session, new_run_id, open_session
from pipeline.view import RunView


@click.command()
@click.argument("overrides", nargs=-1)
@click.option(
    "--source",
    required=True,
    metavar="URI",
    help="A zip, tar or folder, s3://bucket/archive.zip, s3://bucket/folder/, kaggle://owner/name or synthetic://?count=N.",
)
@click.option("--name", default="images", show_default=True, help="Name of the data set, part of its storage path.")
@click.option("--image-px", type=int, default=256, show_default=True, help="Side of the square images that come out.")
@click.option(
    "--license", "licence", default="unspecified", show_default=True, help="Terms of the images; recorded with what is made from them."
)
@click.option("--accept-license", "accepted_by", metavar="NAME", help="Accept the terms in this name; it is recorded too.")
@click.option("--workers", type=click.IntRange(1, 64), help="Decoding processes.  [default: one for each core, at most 8]")
@home_option
@json_option
def ingest(
    overrides: tuple[str, ...],
    source: str,
    name: str,
    image_px: int,
    licence: str,
    accepted_by: str | None,
    workers: int | None,
    home: Path,
    as_json: bool,
) -> None:
    """Check the images of a source and store them as a data set.

    OVERRIDES are written data.key=value, like data.max_rejected=0.05.
    """
    changes = {
        "data.source": source,
        "data.name": name,
        "data.image_px": image_px,
        "data.licence": licence,
        "data.licence_accepted_by": accepted_by,
    }
    config = load_data(overrides, changes=changes)
    require_consent(config)
    open_source(config)  # a source that cannot be read is said before anything is started
    run_id = new_run_id("ingest")
    folder = home.absolute() / "runs" / run_id
    with open_session(home) as session, RunView() as view, _context(session, run_id, folder, view) as context:
        manifest, url = _ingest(config, context, workers)
        report = folder / "report.html"
        context.store.get_file(StoreUri.parse(manifest.uri) / report.name, report)
        stopped = session.services is not None and not session.services.stays()
    _finish(manifest, url, report, stopped=stopped, as_json=as_json)


@contextmanager
def _context(session: Session, run_id: str, folder: Path, view: RunView) -> Iterator[StepContext]:
    """Have a step's context whose events are drawn as they are said."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting = SayOnce(lambda name: view.say(f"waiting for the embedded {name} server"))
    found = session.context(session.environment(run_id=run_id, preset="ingest", on_wait=waiting))
    context = StepContext(settings=found.settings, events=_Shown(folder / "events.jsonl", view))
    context.events.say("started")
    try:
        yield context
    except BaseException:
        context.events.say("failed")
        raise
    context.events.say("finished")


class _Shown(Events):
    """Events that are drawn as they are said."""

    def __init__(self, path: Path, view: RunView) -> None:
        super().__init__("ingest", path, redact=redactor())
        self._view = view

    def say(self, kind: Kind, **facts: Any) -> None:
        super().say(kind, **facts)
        self._view(Event(step=self.step, kind=kind, at_s=time.time(), facts=facts))


def _ingest(config: DataConfig, context: StepContext, workers: int | None) -> tuple[DatasetManifest, str]:
    from components.ingest.ingest import run
    from components.ingest.record import record

    tracking = context.tracking
    with tracking.running(tracking.pipeline_run()) as parent:
        manifest = run(config, context, workers=workers)
        run_id = record(manifest, context)
        tracking.tag(parent, {"outcome": "FINISHED"})
    return manifest, tracking.run_url(run_id)


def _finish(manifest: DatasetManifest, url: str, report: Path, *, stopped: bool, as_json: bool) -> None:
    rejected = ", ".join(f"{code} {count}" for code, count in manifest.rejected.items()) or "none"
    held_out = f", {manifest.num_held_out} held out" if manifest.num_held_out else ""
    say()
    say(f"  data set   {manifest.num_images} images{held_out}, digest {manifest.digest}")
    say(f"  rejected   {rejected}" + (f"; {manifest.ignored} other files ignored" if manifest.ignored else ""))
    say(f"  stored     {manifest.uri}")
    say(f"  report     {report}")
    say(f"  MLflow     {url}")
    if stopped:
        say(f"             (its server has stopped; `{command_name()} ui` starts it again and prints the address)")
    if as_json:
        facts = manifest.model_dump(
            mode="json", include={"digest", "uri", "num_images", "num_held_out", "accepted", "rejected", "ignored", "source", "licence"}
        )
        print_json({**facts, "report": str(report), "mlflow_run_url": url})
