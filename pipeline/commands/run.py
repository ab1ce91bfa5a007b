"""`celebdit demo` and `celebdit run`: run the whole pipeline on this machine."""

import re
import time
from pathlib import Path, PurePath
from typing import Any

import click

from components.errors import EXIT_OK, BadInput, GateFailed
from components.ingest.sources.open_source import kind_of, require_consent
from components.registry.promotions.moves import CHAMPION
from components.reports.plural import plural
from components.reports.score import score_sentence
from components.runtime.events import Event
from components.system.locks import lock
from pipeline.commands.commands_in_hints import open_view
from pipeline.commands.cost_question import ask_about_cost, yes_option
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, license_option, next_command, print_gate, print_json, print_line
from pipeline.config import RunConfig, load_config
from pipeline.runs import RunSummary, execute
from pipeline.session import Session, new_run_id, open_session
from pipeline.source_check import check_source
from pipeline.view import RunView

_NAME_CHARACTERS = 50
_DEMO_FACES, _DEMO_SEED, _DEMO_PX = 2400, 0, 256


_profile_option = click.option(
    "--profile",
    "profile_steps",
    type=int,
    metavar="STEPS",
    help="Profile this many training steps with torch's profiler; the trace is logged to MLflow.",
)


@click.command(epilog=example("celebdit demo training.total_steps=200 --keep-services"))
@click.argument("overrides", nargs=-1)
@click.option("--source", help="Your images instead of generated faces: a zip, tar or folder, local or s3://; at least 100 images.")
@click.option("--keep-services", is_flag=True, help="Keep the embedded servers running after the command.")
@_profile_option
@home_option
@json_option
def demo(overrides: tuple[str, ...], source: str | None, keep_services: bool, profile_steps: int | None, home: Path, as_json: bool) -> int:
    """Run the whole pipeline on generated faces: ingest, train, evaluate and register a model, in a few minutes.

    OVERRIDES have the form section.key=value, like training.total_steps=200.
    """
    if source is not None and kind_of(source).names_published_dataset:
        raise BadInput(
            f"--source {source} is a published dataset, demo takes only your own images",
            hint="use a local file, a folder or s3://; for CelebA-HQ: celebdit run celebahq256-s --accept-license NAME",
        )
    archive = demo_archive(home)
    data_source = str(archive.absolute()) if source is None else source if "://" in source else str(Path(source).absolute())
    changes: dict[str, str | int] = {"data.source": data_source, **_profile_changes(profile_steps)}
    if source is not None:
        changes |= {**_own_names(source, overrides), "data.licence": "unspecified"}
    config = load_config("demo", overrides, changes=changes)
    require_one_machine(config)
    if source is not None:
        check_source(config)
    run_id = new_run_id("demo")
    with open_session(home, stay=keep_services, what=f"run {run_id}") as session, open_view() as view:
        if source is None and not archive.exists():
            _make_archive(archive, view)
        summary = execute(config, session, view, preset="demo", run_id=run_id)
        stays = session.stays
    return _finish(summary, session, as_json=as_json, servers_stay=stays)


@click.command(epilog=example("celebdit run smoke training.total_steps=20 --json"))
@click.argument("preset")
@click.argument("overrides", nargs=-1)
@click.option("--keep-services", is_flag=True, help="Keep the embedded servers running after the command.")
@license_option
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "container"]),
    default="subprocess",
    show_default=True,
    help="Run the steps as processes, or in the images of `make images` with docker or podman.",
)
@_profile_option
@yes_option
@home_option
@json_option
def run(
    preset: str,
    overrides: tuple[str, ...],
    keep_services: bool,
    accepted_by: str | None,
    runner: str,
    profile_steps: int | None,
    yes: bool,
    home: Path,
    as_json: bool,
) -> int:
    """Run the pipeline with PRESET, a preset's name or a TOML file, on this machine.

    OVERRIDES have the form section.key=value, like training.total_steps=200.
    """
    changes = _profile_changes(profile_steps) | ({} if accepted_by is None else {"data.licence_accepted_by": accepted_by})
    config = load_config(preset, overrides, changes=changes)
    require_one_machine(config)
    require_consent(config.data)
    check_source(config)
    ask_about_cost(config, preset, overrides, home=home, yes=yes)
    run_id = new_run_id(preset)
    with open_session(home, stay=keep_services, what=f"run {run_id}") as session, open_view() as view:
        summary = execute(config, session, view, preset=Path(preset).stem, run_id=run_id, in_containers=runner == "container")
        stays = session.stays
    return _finish(summary, session, as_json=as_json, servers_stay=stays)


def _own_names(source: str, overrides: tuple[str, ...]) -> dict[str, str]:
    """Return the names of a person's own dataset and of its model, which the champion of another dataset has no part in.

    Names that `overrides` set are left to them.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", PurePath(source.rstrip("/")).name.partition(".")[0].lower()).strip("-")[:_NAME_CHARACTERS].rstrip("-")
    overridden = {name: value for name, _, value in (override.partition("=") for override in overrides)}
    name = overridden.get("data.name", f"own-{stem}" if stem else "demo-own").strip("\"' ")
    names = {"data.name": name, "registry.model_name": f"celebdit-{name}"}
    return {key: value for key, value in names.items() if key not in overridden}


def require_one_machine(config: RunConfig) -> None:
    """Raise BadInput if `config` needs several machines."""
    if config.resources.nodes > 1:
        raise BadInput(
            f"resources.nodes is {config.resources.nodes}, and this command runs on this machine alone",
            hint="set resources.nodes=1 and resources.processes to the number of GPUs, or use `celebdit submit` for several machines",
        )


def demo_archive(home: Path) -> Path:
    """Return the archive of the generated faces that `celebdit demo` trains on; it is made when it is first needed."""
    return home / "demo" / f"faces-{_DEMO_FACES}-{_DEMO_SEED}-{_DEMO_PX}.zip"


def _profile_changes(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"training.profile_steps": steps}


def _make_archive(archive: Path, view: RunView) -> None:
    """Generate the demo's faces while the servers start, unless another demo does; what a killed one left is removed."""
    from components.ingest.sources.synthetic import write_archive  # imports NumPy

    def show(kind: Any, **facts: object) -> None:
        view(Event(step="faces", kind=kind, at_s=time.time(), facts=facts))

    show("started")
    with lock(archive.with_suffix(".lock"), on_wait=lambda: show("note", text="another demo generates the faces; waiting for it")):
        for left in archive.parent.glob(f".{archive.name}.*.partial"):
            left.unlink()
        if not archive.exists():
            write_archive(
                archive,
                count=_DEMO_FACES,
                seed=_DEMO_SEED,
                image_px=_DEMO_PX,
                on_image=lambda done: show("progress", done=done, total=_DEMO_FACES, text="faces") if done % 20 == 0 else None,
            )
    show("finished")


def _finish(summary: RunSummary, session: Session, *, as_json: bool, servers_stay: bool) -> int:
    score, model = summary.score, summary.model
    noise = summary.metrics.get(f"{score.name}_of_noise")
    print_line()
    print_line(f"  data       {plural(summary.dataset.num_images, 'image')}, digest {summary.dataset.digest[:12]}")
    print_line(f"  training   {plural(summary.training_steps, 'step')}, run {summary.run_key}, checkpoint {summary.checkpoint.digest[:12]}")
    print_line(f"  score      {score_sentence(score.name, score.value, summary.metrics.get(f'{score.name}_std'), noise)}; lower is better")
    print_gate(summary.gate.decision, summary.gate.reasons)
    if model is not None:
        print_line(f"  model      {model.name} version {model.version}, {', '.join(model.aliases)}")
    print_line(f"  samples    {summary.samples}")
    print_line(f"  MLflow     {session.link(summary.mlflow.run_url) if servers_stay else summary.mlflow.run_url}")
    if not servers_stay:
        print_line(f"             (its server has stopped; `{next_command('ui')}` starts it again and prints its address)")
    print_line("  seconds    " + ", ".join(f"{step} {seconds:.0f}" for step, seconds in summary.seconds.items()))
    if model is not None:
        promoted = CHAMPION in model.aliases
        following = (
            f"sample models:/{model.name}@{CHAMPION}" if promoted else f'models promote {model.version} --model {model.name} --reason "..."'
        )
        print_line(f"  next       {next_command(following)}")
    if as_json:
        print_json(summary.model_dump(mode="json"))
    return EXIT_OK if summary.passed else GateFailed.exit_code
