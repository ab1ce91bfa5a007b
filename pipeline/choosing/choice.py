"""Choose among the weights of one training: check what was asked for, measure, log, and register the best.

Promises: what cannot work is refused before anything is sampled; with `registers` the full evaluation of the best is checked as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.reports.plural import plural
from components.tracking.tags import TAG_RUN_KEY
from components.tracking.training_names import find_training_run
from components.train.spec import TrainSpec, newest_spec
from model.config import SamplingConfig
from pipeline.choosing.candidates import Candidate, StoredWeights, choose_candidates
from pipeline.choosing.mlflow_log import log_scores
from pipeline.choosing.registration import Registration, check_champion, register_candidate
from pipeline.choosing.scores import Measured, best_of, measure, require_measurable, verdict
from pipeline.choosing.settings import check_student_sampling, few_images, for_candidates, settings_of
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from components.runtime.context import StepContext
    from components.tracking.client import Run


@dataclass(frozen=True)
class Request:
    """Values of the options of the command; an empty list and None stand for the default."""

    run: str
    steps: tuple[int, ...]
    widths: tuple[float, ...]
    num_images: int | None
    preset_or_file: str | None
    overrides: tuple[str, ...]
    registers: bool


@dataclass(frozen=True)
class Choice:
    """The candidates of a training, and how they are measured."""

    trained: "Run"
    training: TrainSpec
    settings: RunConfig
    """How the best is measured and registered."""
    few: RunConfig
    """How the candidates are measured."""
    candidates: Sequence[Candidate]
    context: "StepContext"

    @classmethod
    def prepare(cls, request: Request, context: "StepContext") -> "Choice":
        """Find the training and its weights, and check everything.

        Raises:
            BadInput: naming what does not exist or cannot be measured. DataRefused: if the champion is not signed by the configured key.
        """
        trained = find_training_run(request.run, context.tracking)
        training = newest_spec(trained.data.tags[TAG_RUN_KEY], context)
        settings = settings_of(request.run, trained, request.preset_or_file, request.overrides, context)
        check_student_sampling(training, settings.sampling)
        candidates = choose_candidates(
            training.run_key,
            StoredWeights.find(context.layout.run(training.run_key), context.store),
            steps=request.steps,
            widths=request.widths,
            tracked=training.training.ema_sigma_rel,
        )
        few = for_candidates(settings, training, request.preset_or_file, request.overrides)
        few = few.model_copy(update={"evaluation": few_images(settings.evaluation, request.num_images)})
        for measured in (few, *([settings] if request.registers else [])):
            require_measurable(training, measured, context)
        if few.sampling != settings.sampling:
            drawn, own = (f"{each.sampling.sampler}, {plural(each.sampling.num_steps, 'step')}" for each in (few, settings))
            context.events.note(f"candidates are drawn with {drawn}, the run's own sampling is {own}")
        if request.registers:
            check_champion(settings, context)
        return cls(trained, training, settings, few, candidates, context)

    def measure(self) -> tuple[list[Measured], dict[str, Any]]:
        """Measure the candidates and log them to MLflow; return them, and what the command prints as JSON."""
        measured = measure(self.candidates, self.training, self.few, self.context)
        facts = _facts(measured, self.few.sampling)
        url = log_scores(measured, facts, self.trained.info.run_id, self.context)
        return measured, {**facts, "registration": None, "mlflow": url}

    def register_best(self, measured: Sequence[Measured]) -> Registration:
        """Evaluate the best under the full protocol, and register it if it passes the gate."""
        best = best_of(measured)
        self.context.events.note(f"evaluating step {best.candidate.step}, EMA {best.candidate.ema}, under the full protocol")
        context = self.context.with_preset(self.trained.data.tags.get("preset", "run"))
        return register_candidate(best, self.training, self.settings, context)


def _facts(measured: Sequence[Measured], sampling: SamplingConfig) -> dict[str, Any]:
    best = best_of(measured)
    rows = [
        {
            "step": entry.candidate.step,
            "sigma_rel": entry.candidate.ema.sigma_rel,
            "value": entry.score.mean,
            "low": entry.score.low,
            "high": entry.score.high,
            "verdict": verdict(entry, best),
            "checkpoint_digest": entry.checkpoint.digest,
            "checkpoint_uri": entry.checkpoint.uri,
            "profile_error": entry.profile_error,
            "metrics": entry.report.metrics,
            "samples": entry.report.grid_uri,
        }
        for entry in measured
    ]
    return {
        "run_key": best.report.run_key,
        "metric": best.report.headline,
        "protocol_digest": best.report.protocol_digest,
        "sampling": {"sampler": sampling.sampler, "num_steps": sampling.num_steps},
        "candidates": rows,
        "best": {"step": best.candidate.step, "sigma_rel": best.candidate.ema.sigma_rel},
    }
