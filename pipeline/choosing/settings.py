"""The settings that weights are sampled, measured, judged and registered with: those of the pipeline run that trained them.

Preflight stores the configuration of a pipeline run as an artifact of its MLflow run.
"""

import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.errors import BadInput, TrackingRefused
from components.evaluate.config import EvaluationConfig
from components.evaluate.protocol import comparison_of
from components.reports.plural import plural
from components.tracking.tags import CONFIG_FILE, TAG_RUN, TAG_TRAINING_RUN, use_number
from model.config import SamplingConfig, TrainingRecipe
from pipeline.config import RunConfig, load_tables, override_config
from pipeline.config_files import parse_override
from pipeline.config_relations import student_sampling_changes
from pipeline.trial_sampling import trial_sampling
from pipeline.variants import toml_value

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.tracking.client import Run

_SECTIONS = ("sampling", "evaluation", "gate", "registry", "resources")
_SAMPLER = {"sampling.sampler", "sampling.num_steps", "sampling.eta"}
"""What an override that is about the sampler names."""
_FEW_IMAGES = 1000


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse an override of what a finished training cannot change.

    Raises:
        BadInput: naming the sections that can be changed.
    """
    for override in overrides:
        section = parse_override(override)[0][0]
        if section not in _SECTIONS:
            raise BadInput(
                f"{override!r} is not a setting of an evaluation: the training has its own", hint=f"sections: {', '.join(_SECTIONS)}"
            )


def settings_of(name: str, trained: "Run", preset_or_file: str | None, overrides: Sequence[str], context: "StepContext") -> RunConfig:
    """Return the configuration `preset_or_file`, or else of the pipeline run `name` that used the training, the newest one of several.

    Raises:
        BadInput: if the configuration is not valid, or neither is there.
    """
    raw = _stored_tables(name, trained, context) if preset_or_file is None else load_tables(preset_or_file)
    return override_config(raw, overrides)


def check_student_sampling(training: TrainingRecipe, sampling: SamplingConfig) -> None:
    """Refuse settings of another configuration that draw images in other steps than those that a student is trained for.

    Raises:
        BadInput: naming the settings and what they must be.
    """
    if training.distill is None:
        return
    changes = student_sampling_changes(training.distill, sampling)
    if changes:
        values = ", ".join(f"sampling.{name} {toml_value(getattr(sampling, name))}" for name in changes)
        raise BadInput(
            f"the training is a student that draws images in {plural(training.distill.steps, 'step')} of its own, not with {values}",
            hint=f"add {' '.join(f'sampling.{name}={value}' for name, value in changes.items())}",
        )


def for_candidates(settings: RunConfig, training: TrainingRecipe, preset_or_file: str | None, overrides: Sequence[str]) -> RunConfig:
    """Return `settings` with images that are drawn in few network calls.

    A student is drawn in its own steps, and a sampler that overrides or another configuration name is used as it is.
    """
    named = {".".join(parse_override(override)[0]) for override in overrides}
    if training.distill is not None or preset_or_file is not None or named & _SAMPLER:
        return settings
    return settings.model_copy(update={"sampling": settings.sampling.model_copy(update=trial_sampling(settings.sampling))})


def _stored_tables(name: str, trained: "Run", context: "StepContext") -> dict[str, Any]:
    tracking = context.tracking
    # MLflow takes a run's start time from its client: a machine whose clock is ahead would always have the newest run.
    users = tracking.search_runs({TAG_TRAINING_RUN: trained.info.run_id})
    for run in sorted(
        users, key=lambda run: (run.data.tags.get(TAG_RUN) == name, use_number(run.data.tags), run.info.start_time), reverse=True
    ):
        if CONFIG_FILE in tracking.artifact_paths(run.info.run_id, ""):
            try:
                return tomllib.loads(tracking.read_artifact(run.info.run_id, CONFIG_FILE).decode())
            except (ValueError, RecursionError, TrackingRefused) as error:
                raise BadInput(f"{CONFIG_FILE} of run {run.info.run_name} in MLflow is not readable: {error}", hint=_HINT) from error
    raise BadInput("MLflow has no configuration of a run that used this training", hint=_HINT)


_HINT = "name the configuration that it was started with: --config PRESET or --config FILE"


def few_images(evaluation: EvaluationConfig, num_images: int | None) -> EvaluationConfig:
    """Return `evaluation` on fewer images, without the search for copies and without the champion: for comparing candidates alone."""
    count = num_images if num_images is not None else min(comparison_of(evaluation).num_images, _FEW_IMAGES)
    metrics = tuple(metric for metric in evaluation.metric_names if metric != "copies")
    return evaluation.model_copy(update={"num_images": count, "metrics": metrics, "memorisation": False, "champion": False})
