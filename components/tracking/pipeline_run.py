"""What MLflow shows of a pipeline run: its name, parameters, dataset, score, version, and a description with links.

Promises: each step adds what it knows, any number of times; the description is a function of the run's tags and replaces its own earlier
text only, never one that a person wrote. Links lead to pages of the same server, at whatever address it is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from components.manifests import DatasetManifest
from components.tracking.client import PARENT, Run, Tracking
from components.tracking.run_parameters import Parameters
from components.tracking.tags import (
    TAG_CONTINUED_FROM,
    TAG_EVALUATION_RUN,
    TAG_GATE,
    TAG_GATE_REASONS,
    TAG_GATE_RUN,
    TAG_GRID,
    TAG_MODEL,
    TAG_REUSED_FROM,
    TAG_RUN,
    TAG_RUN_KEY,
    TAG_SCORE,
    TAG_TRAINED_BY,
    TAG_TRAINING_RUN,
    TAG_TRAINING_STEPS,
    TAG_TRAINING_USE,
    TAG_VERSION,
    TAG_VERSION_REUSED,
    use_number,
)
from components.tracking.ui_pages import artifact_image, run_page, version_page

_NOTE = "mlflow.note.content"
_END = "\n\n_Written by celebdit._"
"""How a description ends that may be replaced."""


@dataclass(frozen=True)
class Facts:
    """What a step adds to the pipeline's run."""

    tags: Mapping[str, str]
    name: str | None = None
    parameters: Parameters | None = None
    dataset: DatasetManifest | None = None


def describe_pipeline_run(tracking: Tracking, facts: Facts) -> Run:
    """Add `facts` to the run of this pipeline, write its description again, and return it as it was before."""
    run = tracking.pipeline_run()
    run_id = str(run.info.run_id)
    if facts.parameters is not None:
        tracking.log_params(run_id, facts.parameters)
    if facts.dataset is not None:
        tracking.log_dataset(run_id, facts.dataset, context="training")
    if facts.name is not None and run.info.run_name == tracking.settings.pipeline_run_id:
        with tracking.translate_errors():
            tracking.client.update_run(run_id, name=facts.name)
    tags = {**run.data.tags, **facts.tags}
    written = run.data.tags.get(_NOTE, "")
    note = {_NOTE: description_of(tags, run_id, run.info.experiment_id)} if not written or written.endswith(_END) else {}
    tracking.set_tags(run_id, {**facts.tags, **note})
    return run


def training_tags(tracking: Tracking, trained: Run, *, steps: int, is_training: bool) -> dict[str, str]:
    """Return the tags that lead from this pipeline's run to its training, and say whether another pipeline run began it."""
    training = str(trained.info.run_id)
    tags = {TAG_TRAINING_RUN: training, TAG_TRAINING_STEPS: str(steps)}
    own = tracking.pipeline_run().data.tags
    if own.get(TAG_TRAINING_RUN) != training or TAG_TRAINING_USE not in own:
        numbers = (use_number(run.data.tags) for run in tracking.search_runs({TAG_TRAINING_RUN: training}))
        tags[TAG_TRAINING_USE] = str(1 + max(numbers, default=0))
    began, began_run = trained.data.tags.get(TAG_RUN), trained.data.tags.get(PARENT)
    if (key := trained.data.tags.get(TAG_RUN_KEY)) is not None:
        tags[TAG_RUN_KEY] = key
    if began is None or began == tracking.settings.pipeline_run_id:
        return tags
    if began_run is not None:
        tags[TAG_TRAINED_BY] = began_run
    if is_training or TAG_CONTINUED_FROM in own:
        return {**tags, TAG_CONTINUED_FROM: began}
    return {**tags, TAG_REUSED_FROM: began}


def description_of(tags: Mapping[str, str], run_id: str, experiment_id: str) -> str:
    """Return the description of the pipeline's run `run_id` with `tags`, as markdown."""
    grid = f"![samples]({artifact_image(run_id, tags[TAG_GRID])})" if TAG_GRID in tags else None
    score = f"**{tags[TAG_SCORE]}**" if TAG_SCORE in tags else None
    facts = (_gate(tags, experiment_id), _training(tags, experiment_id), _evaluation(tags, experiment_id), _version(tags))
    lines = "\n".join(f"- {line}" for line in facts if line is not None)
    return "\n\n".join(part for part in (score, lines, grid) if part) + _END


def _gate(tags: Mapping[str, str], experiment_id: str) -> str | None:
    if TAG_GATE not in tags:
        return None
    page = f"; [page](#{_page(tags[TAG_GATE_RUN], experiment_id)}/artifacts/gate.html)" if TAG_GATE_RUN in tags else ""
    return f"Gate: **{tags[TAG_GATE]}**, {tags.get(TAG_GATE_REASONS, '')}{page}"


def _training(tags: Mapping[str, str], experiment_id: str) -> str | None:
    if TAG_TRAINING_RUN not in tags:
        return None
    link = f"[run {tags.get(TAG_RUN_KEY, '')}]({run_page(tags[TAG_TRAINING_RUN], experiment_id)})"
    text = f"Training: {link}, {tags.get(TAG_TRAINING_STEPS, '?')} steps"
    for tag, verb in ((TAG_REUSED_FROM, "reused from"), (TAG_CONTINUED_FROM, "continued from")):
        if tag in tags:
            name = f"[{tags[tag]}]({run_page(tags[TAG_TRAINED_BY], experiment_id)})" if TAG_TRAINED_BY in tags else f"`{tags[tag]}`"
            text += f", {verb} {name}"
    return text


def _evaluation(tags: Mapping[str, str], experiment_id: str) -> str | None:
    if TAG_EVALUATION_RUN not in tags:
        return None
    return f"Evaluation: [metrics, protocol and samples]({run_page(tags[TAG_EVALUATION_RUN], experiment_id)})"


def _version(tags: Mapping[str, str]) -> str | None:
    if TAG_VERSION not in tags or TAG_MODEL not in tags:
        return None
    name, number = tags[TAG_MODEL], tags[TAG_VERSION]
    reused = ", registered by an earlier run" if tags.get(TAG_VERSION_REUSED) == "true" else ""
    return f"Version: [{name} {number}]({version_page(name, number)}){reused}"


def _page(run_id: str, experiment_id: str) -> str:
    return f"/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"
