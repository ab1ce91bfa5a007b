"""`celebdit ema`: post-hoc EMA of another width, from the snapshots of a training."""

from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import click

from components.errors import BadInput
from components.reports.plural import plural
from components.tracking.tags import TAG_LICENCE
from components.tracking.training_names import require_run_key
from components.weights.ema_width import check_width
from model.sampler_table import SAMPLERS
from pipeline.commands.help import example
from pipeline.commands.options import check_model, home_option, json_option, next_command, print_json, print_line, print_mlflow_url
from pipeline.commands.students import refuse_to_register_other_steps, warn_of_other_steps
from pipeline.session import open_session

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.weights.posthoc_ema import PosthocEma
    from model.config import SamplingConfig

_POOR = 0.1


class CheckpointFacts(TypedDict):
    """Where the averaged weights are stored."""

    digest: str
    uri: str
    group: str


class VersionFacts(TypedDict):
    """The version that an average was registered as."""

    name: str
    version: str
    new: bool


class EmaFacts(TypedDict):
    """One average in the JSON output."""

    sigma_rel: float
    step: int
    snapshots: int
    profile_error: float
    checkpoint: CheckpointFacts
    samples: str
    mlflow: NotRequired[str]
    model: NotRequired[VersionFacts]


@click.command(epilog=example("celebdit ema 53e830b04a95c9d2 --sigma-rel 0.08 --sigma-rel 0.15"))
@click.argument("run")
@click.option(
    "--sigma-rel",
    "widths",
    type=float,
    multiple=True,
    required=True,
    help="Width of the EMA relative to the training length; repeat for several.",
)
@click.option("--step", type=click.IntRange(min=1), help="Training step at which the EMA ends.  [default: that of the newest snapshot]")
@click.option(
    "--sampler",
    type=click.Choice(list(SAMPLERS)),
    help="Sampler of the sample grid and, with --register, of the version.  [default: a distilled student's own, else heun]",
)
@click.option("--steps", "num_steps", type=int, help="Number of sampler steps.  [default: a distilled student's own, else 20]")
@click.option("--register", "model", metavar="MODEL", callback=check_model, help="Register each EMA as a version of this model.")
@home_option
@json_option
def ema(
    run: str,
    widths: tuple[float, ...],
    step: int | None,
    sampler: str | None,
    num_steps: int | None,
    model: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Compute an EMA of another width from the snapshots of the training of RUN, and generate a sample grid with it.

    RUN is a run key (or its first characters) or a run id, as `celebdit run` prints it.
    Recombines the stored averages after training (Karras et al. 2024). Wider EMAs are smoother; narrower ones follow the newest weights.
    """
    _sampling(sampler, num_steps)
    for width in widths:
        check_width(width)
    with open_session(home) as session:
        context = session.context()
        from components.weights.posthoc_ema import compute_posthoc_ema, find_student_sampling

        run_key = require_run_key(run, context.tracking)
        if (sampler, num_steps) != (None, None) and (own := find_student_sampling(run_key, context)) is not None:
            # Before the average, which takes minutes where snapshots are large.
            (warn_of_other_steps if model is None else refuse_to_register_other_steps)(own, _sampling(sampler, num_steps, own))
        averages: list[EmaFacts] = []
        for width in dict.fromkeys(widths):
            average = compute_posthoc_ema(run_key, width, context, step=step)
            sampling = _sampling(sampler, num_steps, average.sampling)
            averages.append(_publish(average, sampling, model, home, context))
    if url := averages[-1].get("mlflow"):
        print_mlflow_url(session.link(url), embedded=session.services is not None)
    if not model:
        print_line(
            f"register one: {next_command(f'ema {run_key} --sigma-rel {widths[0]} --register MODEL', 'step', 'sampler', 'num_steps')}"
        )
    if as_json:
        print_json({"run_key": run_key, "averages": averages})


def _sampling(sampler: str | None, num_steps: int | None, own: "SamplingConfig | None" = None) -> "SamplingConfig":
    """Return the options in place of what the weights have of their `own`, or of the defaults.

    Raises:
        BadInput: if an option is out of bounds.
    """
    from pydantic import ValidationError

    from components.validation import describe
    from model.config import SamplingConfig

    base = {"sampler": "heun", "num_steps": 20} if own is None else {"sampler": own.sampler, "num_steps": own.num_steps}
    options = {"sampler": sampler, "num_steps": num_steps}
    try:
        return SamplingConfig.model_validate(
            {**base, **{name: value for name, value in options.items() if value is not None}, "ema": "none"}
        )
    except ValidationError as error:
        raise BadInput(describe(error, section="sampling")) from error


def _publish(average: "PosthocEma", sampling: "SamplingConfig", model: str | None, home: Path, context: "StepContext") -> EmaFacts:
    """Write a sample grid of the average, log it to MLflow, register the average if a model is given, and return the facts."""
    from components.reports.image_grid import png
    from components.serving.register_version import register_unevaluated
    from components.weights.posthoc_ema import draw_samples, to_unevaluated

    name = average.name.setting
    print_line(f"sigma_rel {name} at step {average.step}: {plural(average.num_snapshots, 'snapshot')}, profile error {average.error:.2%}")
    if average.error > _POOR:
        print_line("  poor match: the requested width or step is outside the range of the stored snapshots")
    grid_path = home.absolute() / "averages" / average.run_key / f"step-{average.step}-sigma_rel-{name}.png"
    pixels = draw_samples(average, sampling)
    grid_path.parent.mkdir(parents=True, exist_ok=True)
    grid_path.write_bytes(png(pixels))
    print_line(f"  samples: {grid_path}")
    print_line(f"  weights: {average.uri}")
    facts: EmaFacts = {
        "sigma_rel": average.sigma_rel,
        "step": average.step,
        "snapshots": average.num_snapshots,
        "profile_error": average.error,
        "checkpoint": {"digest": average.checkpoint.digest, "uri": str(average.uri), "group": average.name.group},
        "samples": str(grid_path),
    }
    run = context.tracking.training_run(average.run_key)
    if run is None:
        print_line("  not logged: MLflow has no run of this training")
        return facts
    context.tracking.log_image(run.info.run_id, pixels, key=f"samples/ema_{name}", step=average.step)
    facts["mlflow"] = context.tracking.run_url(run.info.run_id)
    if model is not None:
        weights = to_unevaluated(average, sampling, run.data.tags.get(TAG_LICENCE, "unspecified"))
        number, is_new = register_unevaluated(weights, model, run.info.run_id, context)
        print_line(f"  {model} version {number}" + ("" if is_new else ", registered before"))
        facts["model"] = {"name": model, "version": number, "new": is_new}
    return facts
