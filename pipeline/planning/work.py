"""Floating-point operations of what is left of a run.

Operations are those of matrix products, convolutions and attention, as `model/flops.py` counts them.
"""

from dataclasses import dataclass

from components.evaluate.protocol import comparison_of
from model.config import TrainingConfig
from model.flops import forward_flops, passes_per_image
from model.sampler_table import SAMPLERS
from model.trainer import NUM_SAMPLES
from pipeline.config import RunConfig


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a run, all devices together."""

    flops_per_image: float
    """Of one forward pass."""
    training_images: int
    passes_per_image: int
    """Operations of a training step for one image, in forward passes."""
    training_flops: float
    scored_images: int
    """Samples of all scores during training."""
    score_flops: float
    calls_per_sample: int
    evaluation_images: int
    evaluation_flops: float

    @property
    def flops(self) -> float:
        return self.training_flops + self.score_flops + self.evaluation_flops


def work_of(config: RunConfig, steps: int, *, is_evaluated: bool) -> Work:
    """Return the operations of `steps` more steps, and of the evaluation if it is not finished."""
    per_image, calls = forward_flops(config.network), SAMPLERS[config.sampling.sampler].calls(config.sampling.num_steps)
    images, passes = steps * config.training.batch_images, passes_per_image(distilled=config.distill.teacher is not None)
    grids = steps // config.training.sample_every_steps + (1 if steps else 0)
    scored = _milestones(config.training, steps) * config.training.score_images
    samples = 0 if is_evaluated else comparison_of(config.evaluation).num_images
    return Work(
        flops_per_image=per_image,
        training_images=images,
        passes_per_image=passes,
        training_flops=per_image * (passes * images + NUM_SAMPLES * calls * grids),
        scored_images=scored,
        score_flops=per_image * calls * scored,
        calls_per_sample=calls,
        evaluation_images=samples,
        evaluation_flops=per_image * calls * samples,
    )


def _milestones(training: TrainingConfig, steps: int) -> int:
    """Return how many of the last `steps` steps are scored."""
    every, total = training.score_every_steps, training.total_steps
    return 0 if every is None else total // every - (total - steps) // every
