"""`celebdit compare`: a table and one image that compare several runs."""

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image

from components.errors import BadInput, DataRefused, TrackingRefused
from components.manifests import EvaluationReport
from components.reports.flatten import flatten
from components.reports.image_grid import SAMPLE_GRID_KEY
from components.reports.listing import list_steps
from components.system.disk import require_writable
from components.tracking.image_names import step_of_image
from components.tracking.tags import TAG_RUN_KEY
from components.tracking.training_names import find_training_run
from pipeline.commands.help import example
from pipeline.commands.options import OutputPath, home_option, json_option, next_command, print_json, print_line
from pipeline.comparison import (
    Evaluation,
    Row,
    RunFacts,
    common_steps,
    last_steps,
    rows,
    same_seeds,
    side_by_side,
)
from pipeline.records import SCHEME, open_records
from pipeline.view import printable

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.tracking.client import Run

_CONFIG = "config/train.json"
_SECTIONS = ("network", "diffusion", "optimizer", "training", "distill", "teacher", "sampling", "dataset_digest", "dataset_name")
_FEWEST = 2
_MOST = 10


@click.command(epilog=example("celebdit compare 53e830b04a95c9d2 906d3557be48d027 --out comparison.png"))
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=OutputPath(), default=Path("comparison.png"), show_default=True, help="PNG file for the samples.")
@home_option
@json_option
def compare(runs: tuple[str, ...], out: Path, home: Path, as_json: bool) -> None:
    """Compare RUNS: settings that differ, metrics with their protocol, cost, and samples of the same seeds and steps.

    RUNS are 2 to 10 run keys (or their first characters, at least four) or run ids, as `celebdit run` prints them, or ids of training runs
    in MLflow. The best value of each metric is marked with *.
    """
    if not _FEWEST <= len(dict.fromkeys(runs)) == len(runs) <= _MOST:
        raise BadInput(f"compare needs {_FEWEST} to {_MOST} different runs, got {len(set(runs))}", hint="see celebdit compare --help")
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise BadInput(f"--out {out} cannot be written", hint="give a .png file in an existing folder")
    require_writable(out.absolute().parent, advice="choose another place with --out", room_bytes=0)
    with open_records(home, artifacts=True) as context:
        training_runs = [find_training_run(name, context.tracking) for name in runs]
        _check_different(runs, training_runs)
        facts = [_facts(name, run, context) for name, run in zip(runs, training_runs, strict=True)]
        steps = common_steps(facts)
        last = last_steps(facts)
        image = _comparison_image(facts, training_runs, steps, last, context) if steps or last else None
        url = _compare_url(training_runs, context)
    table = rows(facts)
    _print(facts, table)
    if image is not None:
        Image.fromarray(image).save(out, "PNG")
        note = "" if same_seeds(facts) else " (sampling.seed differs: tiles at the same position come from different noise)"
        shown = [f"step {', '.join(map(str, steps))}"] if steps else []
        shown += [] if last is None else [f"the last of each run (step {', '.join(map(str, last))})"]
        print_line(f"  samples at {' and '.join(shown)}: {out}{note}")
    else:
        sample_steps = "; ".join(f"{run.name}: {list_steps(run.grid_steps)}" for run in facts)
        print_line(f"  no image: the runs have no step with samples in common ({sample_steps})")
    print_line(f"  MLflow  {url or 'is not running, start it: ' + next_command('ui')}")
    if as_json:
        lines = [
            {"kind": row.kind, "name": row.name, "values": list(row.values), **({"best": sorted(row.best)} if row.best else {})}
            for row in table
        ]
        print_json(
            {
                "runs": list(runs),
                "rows": lines,
                "steps": steps,
                "last_steps": last,
                "picture": None if image is None else str(out),
                "mlflow": url,
            }
        )


def _check_different(names: tuple[str, ...], training_runs: "list[Run]") -> None:
    by_id: dict[str, str] = {}
    for name, run in zip(names, training_runs, strict=True):
        if run.info.run_id in by_id:
            raise BadInput(
                f"{by_id[run.info.run_id]} and {name} are the same training",
                hint="a pipeline run whose training was finished before reuses that training",
            )
        by_id[run.info.run_id] = name


def _facts(name: str, run: "Run", context: "StepContext") -> RunFacts:
    key = run.data.tags[TAG_RUN_KEY]
    steps = (step_of_image(path, SAMPLE_GRID_KEY) for path in context.tracking.image_paths(run.info.run_id))
    return RunFacts(
        name=name,
        settings=_settings(run, context),
        evaluations=_evaluations(key, context),
        cost=_cost(run),
        grid_steps=frozenset(step for step in steps if step is not None),
    )


def _settings(run: "Run", context: "StepContext") -> dict[str, object]:
    try:
        spec = json.loads(context.tracking.read_artifact(run.info.run_id, _CONFIG))
        if "teacher" in spec:  # what the section `distill` names as teacher was looked up
            spec["distill"] = {"steps": spec["distill"]["steps"]}
        sections = {**spec, "dataset_digest": spec["dataset"]["digest"], "dataset_name": spec["dataset"]["name"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TrackingRefused):  # not the file that a training wrote
        return dict(run.data.params)
    return flatten({name: sections[name] for name in _SECTIONS if name in sections})


def _evaluations(run_key: str, context: "StepContext") -> list[Evaluation]:
    store, home = context.store, context.layout.run(run_key).evaluations
    evaluations = []
    for item in store.list(home):
        if item.uri.name == "report.json":
            report = EvaluationReport.parse(store.get_bytes(item.uri), origin=str(item.uri))
            evaluations.append(Evaluation(report.protocol.name, report.protocol_digest, report.checkpoint_step, report.metrics))
    return evaluations


def _cost(run: "Run") -> dict[str, float | str]:
    metrics = run.data.metrics
    cost: dict[str, float | str] = {key: metrics[key] for key in sorted(metrics) if key.startswith(("cost/", "perf/"))}
    if run.info.end_time:
        cost["minutes from first start to last end"] = (run.info.end_time - run.info.start_time) / 60_000
    return {**cost, "status": run.info.status}


def _comparison_image(
    facts: list[RunFacts], training_runs: "list[Run]", steps: list[int], last: list[int] | None, context: "StepContext"
) -> np.ndarray:
    grids: dict[int | str, list[np.ndarray]] = {}
    for step in steps:
        grids[step] = [_grid(run, step, context) for run in training_runs]
    if last is not None:
        label = f"the last samples of each run: step {', '.join(map(str, last))}"
        grids[label] = [_grid(run, step, context) for run, step in zip(training_runs, last, strict=True)]
    return side_by_side([run.name for run in facts], grids)


def _grid(run: "Run", step: int, context: "StepContext") -> np.ndarray:
    path = next(path for path in context.tracking.image_paths(run.info.run_id) if step_of_image(path, SAMPLE_GRID_KEY) == step)
    image = context.tracking.read_artifact(run.info.run_id, path)
    try:
        return np.asarray(Image.open(io.BytesIO(image), formats=("PNG",)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataRefused(
            f"{path} of run {run.info.run_name} in MLflow is not a readable PNG", hint="delete it there, or compare others"
        ) from error


def _compare_url(training_runs: "list[Run]", context: "StepContext") -> str | None:
    """Return the address of the comparison in MLflow, or None if its server does not run."""
    if context.settings.mlflow_uri.startswith(SCHEME):
        return None
    return context.tracking.compare_url([run.info.run_id for run in training_runs], experiment_id=training_runs[0].info.experiment_id)


def _print(facts: list[RunFacts], table: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 200)
    grid = Table("", "", *(printable(run.name) for run in facts), show_edge=False)
    previous = None
    for row in table:
        if row.kind != previous and previous is not None:
            grid.add_section()
        values = (f"{printable(value)}{' *' if column in row.best else ''}" for column, value in enumerate(row.values))
        grid.add_row(row.kind if row.kind != previous else "", row.name, *values)
        previous = row.kind
    console.print(grid)
    if not any(row.kind == "setting" for row in table):
        print_line("  all settings are equal")
