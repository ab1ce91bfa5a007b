"""A sweep as a page that is complete in itself: the settings that vary, scores by rung, parallel coordinates, samples of the best four."""

from collections.abc import Callable
from dataclasses import dataclass

from components.errors import CelebditError
from components.reports.html import image_source, render
from pipeline.sweeps.charts import parallel_chart, rung_chart
from pipeline.sweeps.records import Piece, SweepState
from pipeline.sweeps.space import label_of
from pipeline.sweeps.standing import Standing
from pipeline.sweeps.sweep_file import Sweep, values_label

_MOST_GRIDS = 4


@dataclass(frozen=True)
class Row:
    """A trial in the table."""

    trial: int
    settings: list[str]
    scores: list[str]
    seconds: float
    outcome: str
    is_winner: bool


@dataclass(frozen=True)
class Verdict:
    """What came of the final run."""

    kind: str
    reasons: list[str]


def sweep_page(sweep: Sweep, state: SweepState, rows: list[Standing], read_image: Callable[[str], bytes]) -> str:
    """Return the page of trials that stand as in `rows`; an image that `read_image` cannot read from the store is left out."""
    config = sweep.config
    hours = state.device_s / 3600
    best = next((row for row in rows if row.newest is not None), None)
    tiles = [("trials", str(len(rows)), f"of {sweep.num_trials}"), ("device hours", f"{hours:.3g}", "train and evaluate")]
    if best is not None and best.newest is not None:
        tiles.append(("best score", best.newest.text(), f"trial {best.trial}, step {max(best.scores)}"))
    return render(
        "sweep.html",
        title=config.name,
        summary=f"{sweep.metric}, {config.goal}. Base {config.base}, sampler {config.sampler}, seeds {', '.join(map(str, config.seeds))}.",
        tiles=tiles,
        verdict=_verdict(state),
        settings=[name.rpartition(".")[2] for name in sweep.space.dimensions],
        rungs=[f"step {steps}" for steps in config.rungs],
        rows=[_row(sweep, row) for row in rows],
        num_seeds=len(config.seeds),
        chart=rung_chart(sweep, rows),
        parallel=parallel_chart(sweep, rows),
        grids=_grids(sweep, state, rows, read_image),
    )


def _verdict(state: SweepState) -> Verdict | None:
    final = state.finished
    if final is None:
        return None
    value = "" if final.value is None else f", {final.metric} = {final.value:.4g}"
    version = f", registered as {final.model} version {final.version}" if final.version else ""
    return Verdict(final.gate, [f"Final run of trial {final.trial}: gate {final.gate}{value}{version}", *final.reasons])


def _row(sweep: Sweep, row: Standing) -> Row:
    return Row(
        row.trial,
        [label_of(row.values[name]) for name in sweep.space.dimensions],
        [row.scores[steps].text() if steps in row.scores else "" for steps in sweep.config.rungs],
        row.seconds,
        row.reason or row.status,
        row.status == "winner",
    )


def _grids(sweep: Sweep, state: SweepState, rows: list[Standing], read_image: Callable[[str], bytes]) -> list[tuple[str, str]]:
    grids = []
    for row in [row for row in rows if row.scores][:_MOST_GRIDS]:
        steps = max(row.scores)
        uri = state.scored[Piece(steps, row.trial, sweep.config.seeds[0])].grid_uri
        if uri is None:
            continue
        try:
            source = image_source(read_image(uri))
        except CelebditError:
            continue
        grids.append((source, f"Trial {row.trial}: {values_label(row.values)}; step {steps}, {row.scores[steps].text()}"))
    return grids
