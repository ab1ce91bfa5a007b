"""`celebdit ema`: averages of other widths, after training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.errors import BadInput
from components.tracking.tags import TAG_LICENCE
from components.weights.ema_width import check_width
from model.sampler_table import SAMPLERS
from pipeline.commands.options import command_name, home_option, json_option, print_json, say, say_where
from pipeline.session import open_session

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.weights.posthoc_ema import PosthocEma
    from model.config import SamplingConfig

_POOR = 0.1


@click.command()
@click.argument("run_key")
@click.option("--sigma-rel", "widths", type=float, multiple=True, required=True, help="Width of the average; can be given several times.")
@click.option("--step", type=click.IntRange(min=1), help="Step at which the average ends.  [default: the newest snapshot's]")
@click.option(
    "--sampler",
    type=click.Choice(list(SAMPLERS)),
    default="heun",
    show_default=True,
    help="Sampler of the pictures and, with --register, of the version.",
)
@click.option("--num-steps", default=20, show_default=True, help="Its number of steps.")
@click.option("--register", "model", metavar="MODEL", help="Make each average a version of this registered model.")
@home_option
@json_option
def ema(
    run_key: str,
    widths: tuple[float, ...],
    step: int | None,
    sampler: str,
    num_steps: int,
    model: str | None,
    home: Path,
    as_json: bool,
) -> None:
    """Recombine the averages that the training RUN_KEY stored to one of width SIGMA_REL, and draw with it (Karras et al. 2024).

    Wider averages are smoother, narrower ones follow the newest weights; which one draws best is known only after training.
    """
    sampling = _sampling(sampler, num_steps)
    for width in widths:
        check_width(width)
    with open_session(home) as session:
        context = session.context()
        from components.weights.posthoc_ema import compute_posthoc_ema

        made: list[dict[str, Any]] = []
        for width in dict.fromkeys(widths):
            average = compute_posthoc_ema(run_key, width, context, step=step)
            made.append(_show(average, sampling, model, home, context))
    if url := made[-1].get("mlflow"):
        say_where(url, embedded=session.services is not None)
    if not model:
        say(f"to keep one as a version: {command_name()} ema {run_key} --sigma-rel {widths[0]:g} --register MODEL")
    if as_json:
        print_json({"run_key": run_key, "averages": made})


def _sampling(sampler: str, num_steps: int) -> "SamplingConfig":
    from pydantic import ValidationError

    from components.runtime.context import describe
    from model.config import SamplingConfig

    try:
        return SamplingConfig.model_validate({"sampler": sampler, "num_steps": num_steps, "ema": "none"})
    except ValidationError as error:
        raise BadInput(describe(error, section="sampling")) from error


def _show(average: "PosthocEma", sampling: "SamplingConfig", model: str | None, home: Path, context: "StepContext") -> dict[str, Any]:
    """Draw with the average, tell MLflow, register it if asked, and return what there is to say."""
    from components.reports.image_grid import png
    from components.serving.register_version import register_unevaluated
    from components.weights.posthoc_ema import draw_samples, to_unevaluated

    name = average.name.setting
    say(f"sigma_rel {name} at step {average.step}: from {average.num_snapshots} snapshots, its profile matched to {average.error:.2%}")
    if average.error > _POOR:
        say("  that is a poor match: it lies outside what the stored widths and steps can give")
    picture = home.absolute() / "averages" / average.run_key / f"step-{average.step}-sigma_rel-{name}.png"
    pixels = draw_samples(average, sampling)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png(pixels))
    say(f"  samples: {picture}")
    say(f"  weights: {average.uri}")
    facts: dict[str, Any] = {
        "sigma_rel": average.sigma_rel,
        "step": average.step,
        "snapshots": average.num_snapshots,
        "profile_error": average.error,
        "checkpoint": {"digest": average.checkpoint.digest, "uri": str(average.uri), "group": average.name.group},
        "samples": str(picture),
    }
    run = context.tracking.training_run(average.run_key)
    if run is None:
        say("  this training has no run in MLflow, so nothing was logged there")
        return facts
    context.tracking.image(run.info.run_id, pixels, key=f"samples/ema_{name}", step=average.step)
    facts["mlflow"] = context.tracking.run_url(run.info.run_id)
    if model is not None:
        weights = to_unevaluated(average, sampling, run.data.tags.get(TAG_LICENCE, "unspecified"))
        number, new = register_unevaluated(weights, model, run.info.run_id, context)
        say(f"  {model} version {number}" + ("" if new else ", made before"))
        facts["model"] = {"name": model, "version": number, "new": new}
    return facts
