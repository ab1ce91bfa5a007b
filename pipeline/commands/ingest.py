"""`celebdit ingest`: turn a source of images into a dataset, without the rest of the pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from components.ingest.config import DataConfig
from components.ingest.sources.open_source import open_source, require_consent, source_examples
from components.manifests import DatasetManifest
from components.reports.plural import plural
from components.runtime.context import StepContext
from components.runtime.events import STOPPED, Events, OnceFilter
from components.runtime.redact import redactor
from pipeline.commands.commands_in_hints import open_view
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, next_command, print_json, print_line
from pipeline.config import load_data
from pipeline.open_runs import open_run, recover_killed_runs
from pipeline.session import Session, new_run_id, open_session, run_folder
from pipeline.view import RunView


@click.command(epilog=example("celebdit ingest --source faces.zip --image-px 64 data.max_rejected=0.05"))
@click.argument("overrides", nargs=-1)
@click.option(
    "--source",
    required=True,
    metavar="URI",
    help=f"Images to read: {source_examples()}.",
)
@click.option("--name", default="images", show_default=True, help="Name of the dataset, part of its storage path.")
@click.option("--image-px", type=int, default=256, show_default=True, help="Side of the square images in the dataset, in pixels.")
@click.option(
    "--license",
    "licence",
    default="unspecified",
    show_default=True,
    help="Licence of the images; recorded with the dataset and every model.",
)
@click.option("--accept-license", "accepted_by", metavar="NAME", help="Accept the licence as NAME; recorded too.")
@click.option("--workers", type=click.IntRange(1, 64), help="Decoding processes.  [default: one per core, at most 8]")
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
    """Validate the images of a source and store them as a dataset.

    OVERRIDES have the form data.key=value, like data.max_rejected=0.05.
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
    open_source(config)  # a source that cannot be read fails before a server is started
    run_id = new_run_id("ingest")
    folder = run_folder(home, run_id)
    with open_session(home, what=f"run {run_id}") as session, open_view() as view, _step_context(session, run_id, folder, view) as context:
        manifest, url = _ingest(config, context, workers)
        report = folder / "report.html"
        context.store.get_file(context.layout.locate(manifest.uri) / report.name, report)
        location, stopped = str(context.layout.locate(manifest.uri)), not session.stays
    _finish(manifest, location, url, report, link=url if stopped else session.link(url), stopped=stopped, as_json=as_json)


@contextmanager
def _step_context(session: Session, run_id: str, folder: Path, view: RunView) -> Iterator[StepContext]:
    """Yield the context of the ingest step; its events go to `folder` and to `view`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = session.environment(run_id=run_id, preset="ingest", on_wait=OnceFilter(view.print_waiting))
    events = Events("ingest", folder / "events.jsonl", redact=redactor(environment), listener=view)
    context = StepContext(settings=session.context(environment).settings, events=events)
    recover_killed_runs(session.home.absolute(), context, view.print_line, servers=session.servers)
    context.events.emit("started")
    with open_run(folder, servers=session.servers) as mark:
        try:
            yield context
        except BaseException as error:
            context.events.emit("failed", **({STOPPED: True} if isinstance(error, KeyboardInterrupt) else {}))
            mark.close()
            raise
        mark.close()
    context.events.emit("finished")


def _ingest(config: DataConfig, context: StepContext, workers: int | None) -> tuple[DatasetManifest, str]:
    from components.ingest.ingest import run
    from components.ingest.record import record

    tracking = context.tracking
    with tracking.mark_running(tracking.pipeline_run()) as parent:
        manifest = run(config, context, workers=workers)
        run_id = record(manifest, context)
        tracking.set_tags(parent, {"outcome": "FINISHED"})
    return manifest, tracking.run_url(run_id)


def _finish(manifest: DatasetManifest, location: str, url: str, report: Path, *, link: str, stopped: bool, as_json: bool) -> None:
    rejected = ", ".join(f"{code} {count}" for code, count in manifest.rejected.items()) or "none"
    held_out = f", {manifest.num_held_out} held out" if manifest.num_held_out else ""
    print_line()
    print_line(f"  dataset    {plural(manifest.num_images, 'image')}{held_out}, digest {manifest.digest}")
    print_line(f"  rejected   {rejected}" + (f"; {manifest.ignored} other files ignored" if manifest.ignored else ""))
    print_line(f"  stored     {location}")
    print_line(f"  report     {report}")
    print_line(f"  MLflow     {link}")
    if stopped:
        print_line(f"             (its server has stopped; `{next_command('ui')}` starts it again and prints its address)")
    if as_json:
        facts = manifest.model_dump(
            mode="json", include={"digest", "num_images", "num_held_out", "accepted", "rejected", "ignored", "source", "licence"}
        )
        print_json({**facts, "uri": location, "report": str(report), "mlflow_run_url": url})
