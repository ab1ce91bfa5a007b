"""`celebdit evaluate`: score checkpoints and EMA widths of a training on few images, and register the best."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.environment import EVENTS
from components.errors import EXIT_OK, GateFailed
from components.system.scratch import temporary_folder
from components.weights.ema_width import check_width
from pipeline.choosing.settings import check_overrides
from pipeline.commands.commands_in_hints import open_view
from pipeline.commands.help import example
from pipeline.commands.options import home_option, json_option, next_command, print_gate, print_json, print_line, print_mlflow_url
from pipeline.session import Session, new_run_id, open_session

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from pipeline.choosing.registration import Registration
    from pipeline.choosing.scores import Measured

_POOR = 0.1
EVENTS_FILE = "events.jsonl"


def _numbers(kind: Callable[[str], float], what: str) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...]]:
    """Return the callback of an option that takes numbers, separated by commas; `what` names them, with an example."""

    def convert(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
        try:
            return () if text is None else tuple(dict.fromkeys(kind(part) for part in text.split(",")))
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a list of {what}", context, parameter) from None

    return convert


@click.command(epilog=example("celebdit evaluate 53e830b04a95c9d2 --steps 600,900 --sigma-rel 0.05,0.1 --num-images 500"))
@click.argument("run")
@click.argument("overrides", nargs=-1)
@click.option(
    "--steps",
    metavar="STEP,...",
    callback=_numbers(int, "steps, like 1000,2000"),
    help="Training steps, separated by commas.  [default: all that are stored]",
)
@click.option(
    "--sigma-rel",
    "widths",
    metavar="WIDTH,...",
    callback=_numbers(float, "widths, like 0.05,0.1"),
    help="Widths of the EMA, separated by commas; any width at steps with an EMA snapshot.  [default: those that the training tracks]",
)
@click.option(
    "--num-images", type=click.IntRange(2, 1_000_000), help="Images per candidate.  [default: 1000, or fewer if the run has fewer]"
)
@click.option("--register", is_flag=True, help="Evaluate the best under the full protocol of the run; if it passes the gate, register it.")
@click.option("--config", "preset_or_file", metavar="PRESET|FILE", help="Settings to measure with.  [default: those of the run]")
@home_option
@json_option
def evaluate(
    run: str,
    overrides: tuple[str, ...],
    steps: tuple[int, ...],
    widths: tuple[float, ...],
    num_images: int | None,
    register: bool,
    preset_or_file: str | None,
    home: Path,
    as_json: bool,
) -> int:
    """Score checkpoints and EMA widths of the training of RUN, finished or not, on few images with the same noise.

    RUN is a run key (or its first characters) or a run id, as `celebdit run` prints it. OVERRIDES have the form section.key=value, of the
    sections sampling, evaluation, gate, registry and resources. Candidates are drawn with UniPC in 20 steps if the sampler of RUN takes
    more network calls; name sampling.sampler, sampling.num_steps or sampling.eta for others. Two candidates differ only if their 95 %
    intervals do not overlap.
    """
    for width in widths:
        check_width(width)
    check_overrides(overrides)
    with open_session(home) as session, temporary_folder() as folder, open_view() as view, view.follow(folder / EVENTS_FILE):
        context = _context(session, folder / EVENTS_FILE)
        from pipeline.choosing.choice import Choice, Request

        choice = Choice.prepare(Request(run, steps, widths, num_images, preset_or_file, overrides, register), context)
        measured, facts = choice.measure()
        registration = choice.register_best(measured) if register else None
        link = session.link(facts["mlflow"])
    _print_table(measured)
    if registration is None:
        best = facts["best"]
        words = ["evaluate", run, *overrides, "--steps", str(best["step"]), "--sigma-rel", f"{best['sigma_rel']:g}", "--register"]
        print_line(f"register it: {next_command(shlex.join(words), 'num_images', 'preset_or_file')}")
    else:
        facts["registration"] = _print_registration(registration)
    print_mlflow_url(link, embedded=session.services is not None)
    if as_json:
        print_json(facts)
    return EXIT_OK if registration is None or registration.gate.decision == "pass" else GateFailed.exit_code


def _context(session: Session, events: Path) -> "StepContext":
    """Return the context of a run of its own, which appends its events, and those of its workers, to the file `events`."""
    from components.runtime.events import Events

    environment = session.environment(run_id=new_run_id("evaluate")) | {EVENTS: str(events)}
    return replace(session.context(environment), events=Events("evaluate", events))


def _print_table(measured: "Sequence[Measured]") -> None:
    from rich.console import Console
    from rich.table import Table

    from pipeline.choosing.scores import best_of, verdict

    best = best_of(measured)
    others = [key for key in best.report.metrics if "spectrum_error" in key and not key.endswith("_std")]
    table = Table("step", "EMA", best.report.headline, *others, "", show_edge=False)
    for entry in measured:
        mark = " *" if entry is best else ""
        values = (f"{entry.report.metrics[key]:.3g}" for key in others)
        remark = verdict(entry, best)
        if entry.profile_error is not None and entry.profile_error > _POOR:
            remark += f", profile matched to {entry.profile_error:.0%} only"
        table.add_row(str(entry.candidate.step), str(entry.candidate.ema), entry.score.text() + mark, *values, remark)
    Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 200).print(table)


def _print_registration(done: "Registration") -> dict[str, Any]:
    report, version = done.report, done.version
    value = report.metrics[report.headline]
    print_line(f"  score      {report.headline} {value:.4g} under protocol {report.protocol.name} {report.protocol_digest[:8]}")
    print_gate(done.gate.decision, done.gate.reasons)
    if version is not None:
        print_line(f"  model      {version.name} version {version.version}, {', '.join(version.aliases)}")
    return {
        "metric": report.headline,
        "value": value,
        "metrics": report.metrics,
        "protocol_digest": report.protocol_digest,
        "gate": {"decision": done.gate.decision, "reasons": done.gate.reasons},
        "model": None if version is None else {"name": version.name, "version": version.version, "aliases": version.aliases},
        "mlflow": done.url,
    }
