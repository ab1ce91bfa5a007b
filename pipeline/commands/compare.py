"""`celebdit compare`: runs side by side, as a table and as one picture."""

import io
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from PIL import Image

from components.errors import BadInput
from components.manifests import EvaluationReport
from components.reports.image_grid import SAMPLE_GRID_KEY
from components.tracking.tags import TAG_KIND, TAG_RUN, TAG_RUN_KEY, TAG_STEP
from pipeline.commands.options import home_option, json_option, print_json, say
from pipeline.comparison import Measured, Row, RunFacts, common_steps, flattened, rows, same_seeds, side_by_side, step_of_image
from pipeline.session import open_session
from pipeline.view import printable

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.tracking.client import Run

_CONFIG = "config/train.json"
_SECTIONS = ("network", "diffusion", "optimizer", "training", "sampling", "dataset_digest", "dataset_name")
_RUN_KEY, _MLFLOW_ID = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{32}")
_FEWEST = 2
_MOST = 10


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("comparison.png"), show_default=True, help="Where the picture goes.")
@home_option
@json_option
def compare(runs: tuple[str, ...], out: Path, home: Path, as_json: bool) -> None:
    """Put RUNS side by side: settings that differ, metrics with their protocol, cost, and the samples of the same seeds and steps.

    A RUN is a run key or run id as `celebdit run` prints it, or the id of a training's run in MLflow.
    """
    if not _FEWEST <= len(dict.fromkeys(runs)) == len(runs) <= _MOST:
        raise BadInput(
            f"{len(runs)} runs were named, {_FEWEST} to {_MOST} different ones can be compared", hint="see celebdit compare --help"
        )
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise BadInput(f"--out {out} cannot be written", hint="name a .png in a folder that exists")
    with open_session(home) as session:
        context = session.context()
        trained = [_training(name, context) for name in runs]
        _check_different(runs, trained)
        facts = [_facts(name, run, context) for name, run in zip(runs, trained, strict=True)]
        steps = common_steps(facts)
        picture = _picture(facts, trained, steps, context) if steps else None
        address = _compare_url(trained, context)
    table = rows(facts)
    _print(facts, table)
    if picture is not None:
        Image.fromarray(picture).save(out, "PNG")
        note = "" if same_seeds(facts) else " (sampling.seed differs: the same place is not the same noise)"
        say(f"  samples at step {', '.join(map(str, steps))}: {out}{note}")
    else:
        having = "; ".join(f"{run.name}: {', '.join(map(str, sorted(run.grid_steps))) or 'none'}" for run in facts)
        say(f"  no picture: there is no step at which all of them have samples ({having})")
    say(f"  MLflow  {address}")
    if as_json:
        shown = str(out) if picture is not None else None
        lines = [{"kind": row.kind, "name": row.name, "values": list(row.values)} for row in table]
        print_json({"runs": list(runs), "rows": lines, "steps": steps, "picture": shown, "mlflow": address})


def _training(name: str, context: "StepContext") -> "Run":
    """Return the MLflow run of the training that `name` means."""
    tracking = context.tracking
    if _RUN_KEY.fullmatch(name):
        found = tracking.search({TAG_STEP: "train", TAG_RUN_KEY: name})
    elif _MLFLOW_ID.fullmatch(name):
        found = [run for run in tracking.search({TAG_STEP: "train"}) if run.info.run_id == name]
    elif re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        pipelines = tracking.search({TAG_RUN: name, TAG_KIND: "pipeline"})
        keys = [key for run in pipelines for key in run.data.tags.get(TAG_RUN_KEY, "").split(",") if key]
        found = tracking.search({TAG_STEP: "train", TAG_RUN_KEY: keys[0]}) if keys else []
    else:
        found = []
    if not found:
        known = sorted({run.data.tags[TAG_RUN_KEY] for run in tracking.search({TAG_STEP: "train"}) if TAG_RUN_KEY in run.data.tags})
        raise BadInput(f"there is no training {name!r} in MLflow", hint=f"run keys that there are: {', '.join(known[:20]) or 'none'}")
    return min(found, key=lambda run: run.info.start_time)


def _check_different(names: tuple[str, ...], trained: "list[Run]") -> None:
    by_id: dict[str, str] = {}
    for name, run in zip(names, trained, strict=True):
        if run.info.run_id in by_id:
            raise BadInput(
                f"{by_id[run.info.run_id]} and {name} are the same training", hint="a pipeline run that finds its work done trains nothing"
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


def _settings(run: "Run", context: "StepContext") -> dict[str, Any]:
    try:
        spec = json.loads(context.tracking.read_artifact(run.info.run_id, _CONFIG))
    except (OSError, ValueError):
        return dict(run.data.params)
    whole = {**spec, "dataset_digest": spec["dataset"]["digest"], "dataset_name": spec["dataset"]["name"]}
    return flattened({name: whole[name] for name in _SECTIONS if name in whole})


def _evaluations(run_key: str, context: "StepContext") -> list[Measured]:
    store, home = context.store, context.layout.run(run_key).evaluations
    found = []
    for item in store.list(home):
        if item.uri.name == "report.json":
            report = EvaluationReport.parse(store.get_bytes(item.uri), origin=str(item.uri))
            found.append(Measured(report.protocol.name, report.protocol_digest, report.checkpoint_step, report.metrics))
    return found


def _cost(run: "Run") -> dict[str, float | str]:
    metrics = run.data.metrics
    found: dict[str, float | str] = {key: metrics[key] for key in sorted(metrics) if key.startswith(("cost/", "perf/"))}
    if run.info.end_time:
        found["minutes from first start to last end"] = (run.info.end_time - run.info.start_time) / 60_000
    return {**found, "status": run.info.status}


def _picture(facts: list[RunFacts], trained: "list[Run]", steps: list[int], context: "StepContext") -> np.ndarray:
    grids = {}
    for step in steps:
        grids[step] = [_grid(run, step, context) for run in trained]
    return side_by_side([run.name for run in facts], grids)


def _grid(run: "Run", step: int, context: "StepContext") -> np.ndarray:
    path = next(path for path in context.tracking.image_paths(run.info.run_id) if step_of_image(path, SAMPLE_GRID_KEY) == step)
    image = context.tracking.read_artifact(run.info.run_id, path)
    return np.asarray(Image.open(io.BytesIO(image), formats=("PNG",)).convert("RGB"))


def _compare_url(trained: "list[Run]", context: "StepContext") -> str:
    return context.tracking.compare_url([run.info.run_id for run in trained], experiment_id=trained[0].info.experiment_id)


def _print(facts: list[RunFacts], table: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 200)
    shown = Table("", "", *(printable(run.name) for run in facts), show_edge=False)
    previous = None
    for row in table:
        if row.kind != previous and previous is not None:
            shown.add_section()
        shown.add_row(row.kind if row.kind != previous else "", row.name, *(printable(value) for value in row.values))
        previous = row.kind
    console.print(shown)
    if not any(row.kind == "setting" for row in table):
        say("  their settings do not differ")
