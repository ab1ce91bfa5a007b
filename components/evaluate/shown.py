"""What the pipeline's run in MLflow shows of an evaluation: the score, its metrics, the sample grid, and the parameters that led to them.

A training that was finished before is described here too, because its step does nothing then.
"""

from components.evaluate.finished import GRID_FILE
from components.evaluate.spec import EvaluateSpec
from components.manifests import EvaluationReport
from components.reports.score import score_sentence
from components.tracking.client import Run, Tracking
from components.tracking.pipeline_run import Facts, describe_pipeline_run, training_tags
from components.tracking.run_parameters import pipeline_parameters, run_name
from components.tracking.tags import TAG_CHECKPOINT, TAG_EVALUATION_RUN, TAG_GRID, TAG_SCORE
from model.config import TrainingRecipe


def show_evaluation(
    report: EvaluationReport, spec: EvaluateSpec, recipe: TrainingRecipe, tracking: Tracking, *, evaluation_run_id: str, trained: Run
) -> None:
    """Describe training and evaluation on the pipeline's run, whose artifacts have the sample grid already."""
    preset = tracking.settings.preset
    tags = {
        **training_tags(tracking, trained, steps=report.checkpoint_step, is_training=False),
        TAG_CHECKPOINT: report.checkpoint_digest,
        TAG_SCORE: score_of(report),
        TAG_GRID: GRID_FILE,
        TAG_EVALUATION_RUN: evaluation_run_id,
    }
    parameters = {
        **pipeline_parameters(recipe, spec.dataset, spec.sampling, spec.resources, preset),
        "evaluation.num_images": spec.num_images,
        "evaluation.extractor": spec.evaluation.extractor,
    }
    facts = Facts(tags=tags, name=run_name(preset, recipe, spec.dataset), parameters=parameters, dataset=spec.dataset)
    run = describe_pipeline_run(tracking, facts)
    tracking.log_values(run.info.run_id, report.metrics, step=report.checkpoint_step)


def score_of(report: EvaluationReport) -> str:
    """Return the headline metric with half of its 95 % interval, and what pure noise scores."""
    key, metrics = report.headline, report.metrics
    return score_sentence(key, metrics[key], metrics.get(f"{key}_std"), metrics.get(f"{key}_of_noise"))
