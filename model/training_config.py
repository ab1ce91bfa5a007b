"""The `optimizer` and `training` sections: how the weights are updated, for how long, and how often progress is stored."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from model.batching import BatchPlan, plan_batch
from model.canonical import JsonObject
from model.frozen_config import FrozenConfig

Precision = Literal["float32", "bfloat16"]
ScoreMetric = Literal["mind", "frechet"]
SCORE_DUE = "score_due"
"""The note of a checkpoint whose step is still to be scored."""
_SCORE_IMAGES = 2000
_SCORE_METRICS: tuple[ScoreMetric, ...] = ("mind",)


class OptimizerConfig(FrozenConfig):
    """AdamW and its learning rate, a pure function of the step."""

    lr_peak: float = Field(2e-4, gt=0, le=1, description="learning rate after warm-up")
    warmup_steps: int = Field(1000, ge=0, description="steps of linear warm-up from zero")
    schedule: Literal["constant", "cosine", "inverse_sqrt"] = Field("constant", description="what follows warm-up")
    decay_steps: int | None = Field(
        None,
        gt=0,
        description="cosine: step at which the rate reaches lr_floor; inverse_sqrt: step from which it falls. Not the length of the run",
    )
    lr_floor: float = Field(0.0, ge=0, le=1, description="cosine: the learning rate at and after decay_steps")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW moment decays")
    eps: float = Field(1e-8, gt=0, le=1e-2, description="AdamW denominator floor")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decoupled weight decay, on matrices and kernels only")
    clip_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global norm")

    def problems(self) -> Iterator[str]:
        if any(not 0 <= beta < 1 for beta in self.betas):
            yield f"betas {list(self.betas)} must be in [0, 1)"
        if self.schedule != "constant":
            if self.decay_steps is None:
                yield f"schedule '{self.schedule}' needs decay_steps"
            elif self.decay_steps <= self.warmup_steps:
                yield f"decay_steps {self.decay_steps} must be larger than warmup_steps {self.warmup_steps}"
        if self.lr_floor > self.lr_peak:
            yield f"lr_floor {self.lr_floor} must not be larger than lr_peak {self.lr_peak}"


class TrainingConfig(FrozenConfig):
    """How long to train, on how many images at once, and how often to make progress visible and durable."""

    total_steps: int = Field(gt=0, le=100_000_000, description="optimiser steps in the whole run, over all restarts")
    batch_images: int = Field(gt=0, le=1_000_000, description="images per optimiser step, over all processes and accumulation")
    microbatch_images: int | None = Field(
        None, gt=0, description="most images per forward pass and process; smaller means gradient accumulation. Default: no limit"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="source of the data order, noise, times and initial weights")
    horizontal_flip: bool = Field(True, description="mirror each image with probability one half")
    ema_sigma_rel: tuple[float, ...] = Field(
        (0.05, 0.10), max_length=4, description="widths of the power-function averages of the weights (Karras et al. 2024)"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of a classic exponential average, kept beside the others. Default: none"
    )
    ema_snapshot_every_steps: int | None = Field(
        None,
        gt=0,
        description="steps between stored copies of the ema_sigma_rel averages, from which `celebdit ema` makes averages of other widths "
        "afterwards; each takes 4 bytes per parameter and width. Default: none are stored",
    )
    precision: Precision = Field("float32", description="bfloat16: autocast with float32 master weights")
    compile: bool = Field(False, description="compile the training step with torch.compile")
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third more time"
    )
    data_on_device: bool = Field(False, description="keep the packed dataset in device memory")
    deterministic: bool = Field(False, description="only deterministic kernels: slower, bitwise repeatable on CUDA")
    log_every_steps: int = Field(50, gt=0, description="steps between metric points")
    sample_every_steps: int = Field(2000, gt=0, description="steps between sample grids")
    held_out_images: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        exclude_if=lambda images: images == 1000,  # manifests that were stored before it keep their bytes
        description="held-out images, and as many training images, whose loss is measured with each sample grid, if data.held_out "
        "sets some aside. 0: none",
    )
    score_every_steps: int | None = Field(
        None,
        gt=0,
        exclude_if=lambda steps: steps is None,  # manifests that were stored before it keep their bytes
        description="steps between scores of samples: score_images images are drawn with the `sampling` section and compared with as many "
        "training images on the features of evaluation.extractor. Default: none",
    )
    score_images: int = Field(
        _SCORE_IMAGES,
        ge=2,
        le=50_000,
        exclude_if=lambda images: images == _SCORE_IMAGES,
        description="images of a score; its name has their number, because more images give another distance",
    )
    score_metrics: tuple[ScoreMetric, ...] = Field(
        _SCORE_METRICS,
        min_length=1,
        max_length=2,
        exclude_if=lambda metrics: metrics == _SCORE_METRICS,
        description="distances to measure; mind needs fewer images than frechet (FID on Inception's features)",
    )
    checkpoint_every_s: float = Field(300.0, ge=1, description="wall-clock seconds between checkpoints: the most work that a kill may cost")
    checkpoints_to_keep: int = Field(3, ge=2, description="newest checkpoints kept in object storage")
    checkpoints_best: int = Field(1, ge=0, description="checkpoints with the best evaluation that are kept as well")
    checkpoint_keep_every_steps: int | None = Field(
        None, gt=0, description="steps between checkpoints that are never deleted. Default: none"
    )
    profile_steps: int = Field(
        0, ge=0, le=1000, description="steps to trace with torch's profiler, once per attempt, after three warm ones"
    )

    def problems(self) -> Iterator[str]:
        if not self.ema_sigma_rel and self.ema_decay is None:
            yield "at least one average of the weights is needed: set ema_sigma_rel or ema_decay"
        if any(not 0.001 <= width <= 0.28 for width in self.ema_sigma_rel):
            yield f"ema_sigma_rel {list(self.ema_sigma_rel)} must lie in [0.001, 0.28]"
        if len(set(self.ema_sigma_rel)) != len(self.ema_sigma_rel):
            yield f"ema_sigma_rel {list(self.ema_sigma_rel)} names a width twice"
        if self.ema_snapshot_every_steps is not None and not self.ema_sigma_rel:
            yield "ema_snapshot_every_steps stores the averages of ema_sigma_rel, and there are none: name at least one width"
        if len(set(self.score_metrics)) != len(self.score_metrics):
            yield f"score_metrics {list(self.score_metrics)} names a metric twice"
        if self.microbatch_images is not None and self.microbatch_images > self.batch_images:
            yield f"microbatch_images {self.microbatch_images} must not exceed batch_images {self.batch_images}"

    def batch_plan(self, num_ranks: int) -> BatchPlan:
        """Share each batch out over `num_ranks` processes.

        Raises:
            ValueError: if they do not divide it.
        """
        return plan_batch(self.batch_images, num_ranks, self.microbatch_images)

    def check_ema(self, ema: str) -> None:
        """Refuse the name of an average of the weights that this training does not keep.

        Raises:
            ValueError: naming those that it keeps.
        """
        tracked = {f"{width:g}" for width in self.ema_sigma_rel} | {"none"}
        if self.ema_decay is not None:
            tracked.add("classic")
        if ema not in tracked:
            raise ValueError(
                f"ema {ema!r} is not tracked by this training, which has {', '.join(sorted(tracked))}: "
                "use one of them, or add it to training.ema_sigma_rel"
            )

    def check_score_images(self, num_images: int) -> None:
        """Refuse scores that compare with more training images than the dataset has, `num_images`: their names would have a wrong number.

        Raises:
            ValueError: if there are too few.
        """
        if self.score_every_steps is not None and self.score_images > num_images:
            raise ValueError(
                f"score_images {self.score_images}: samples are compared with as many training images, and there are {num_images}"
            )

    def why_never_scored(self) -> str | None:
        """Return why a training whose scores are configured has none, or None if it has some, or they are off."""
        if self.score_every_steps is None or self.score_every_steps <= self.total_steps:
            return None
        return f"training.score_every_steps {self.score_every_steps} is beyond training.total_steps {self.total_steps}: nothing is scored"

    def is_milestone(self, step: int) -> bool:
        """Return whether samples of `step` are scored."""
        return self.score_every_steps is not None and step % self.score_every_steps == 0

    def is_score_due(self, step: int, notes: Mapping[str, object]) -> bool:
        """Return whether `step`, whose checkpoint has `notes`, is still to be scored: a stop ended its score, and it is a milestone yet."""
        return self.is_milestone(step) and notes.get(SCORE_DUE) is True

    def identity(self) -> JsonObject:
        """Return the fields that decide the numbers of a run; the others (how long, how often, on what) may change on resume."""
        return self.model_dump(mode="json", include={"batch_images", "seed", "horizontal_flip", "ema_sigma_rel", "ema_decay", "precision"})
