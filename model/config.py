"""What defines a model and its training: the typed, immutable sections that `model/` reads.

Promises: a value that validates here can be built and trained; every bound names its unit. Validation is strict: "8" and
8.0 are not 8, NaN is not a number, an unknown key is an error. Values of the presets are in `pipeline/presets/`. Import all sections from
here; `network`, `optimizer`, `training` and `distill` are defined in `network_config.py`, `training_config.py` and `distill_config.py`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from model.canonical import JsonObject
from model.distill_config import DistillConfig, Teacher, distillation_identity
from model.frozen_config import FrozenConfig
from model.network_config import NetworkConfig
from model.sampler_table import SAMPLERS, samplers_that_use_eta
from model.training_config import OptimizerConfig, Precision, TrainingConfig

__all__ = [
    "STUDENT_SAMPLER",
    "TRAINING_VERSION",
    "DiffusionConfig",
    "DistillConfig",
    "ModelSpec",
    "NetworkConfig",
    "OptimizerConfig",
    "Precision",
    "Recipe",
    "SamplingConfig",
    "Teacher",
    "TrainingConfig",
    "TrainingRecipe",
    "student_sampling",
]

STUDENT_SAMPLER = "ddpm"
"""Ancestral sampling, which the steps of a student are trained for."""
TRAINING_VERSION = 5
"""The version of the training maths. Part of every run key: raise it when a change moves the numbers of a run, and only then."""


class DiffusionConfig(FrozenConfig):
    """What the denoiser learns: the noise path, what it predicts, and how errors are weighted."""

    path: Literal["rectified_flow", "vp_linear", "vp_cosine", "vp_zero_snr"] = Field(
        "rectified_flow", description="how data turns into noise"
    )
    prediction: Literal["x", "eps", "v"] = Field("x", description="what the network outputs: the clean image, the noise or the velocity")
    weighting: Literal["none", "v", "min_snr", "sigmoid"] = Field(
        "v", description="none: plain error of the prediction; v: error in velocity space; min_snr, sigmoid: on the error of the image"
    )
    min_snr_gamma: float = Field(5.0, gt=0, description="min_snr: largest weight on the image error (Hang et al. 2023)")
    sigmoid_bias: float = Field(0.0, ge=-20, le=20, description="sigmoid: log-SNR where the weight on the noise error is one half")
    sigma_floor: float = Field(0.05, gt=0, lt=1, description="v weighting: noise levels below this one are weighted as this one")
    times: Literal["uniform", "logit_normal"] = Field("logit_normal", description="how training times are drawn")
    logit_mean: float = Field(0.8, ge=-10, le=10, description="logit_normal: mean of logit(t); larger is noisier")
    logit_std: float = Field(0.8, gt=0, le=10, description="logit_normal: standard deviation of logit(t)")
    uniform_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        exclude_if=lambda share: share == 0,  # manifests and run keys from before it stay the same
        description="logit_normal: share of the times that is drawn uniformly instead, so that those near zero, where detail is decided, "
        "are trained at all",
    )
    time_shift: float = Field(
        1.0, gt=0, le=100, description="t' = a t / (1 + (a - 1) t): a > 1 trains at more noise, for larger images (Esser et al. 2024)"
    )

    def problems(self) -> Iterator[str]:
        if self.path in ("rectified_flow", "vp_zero_snr") and self.prediction == "eps":
            yield (
                f"prediction 'eps' cannot be used with path '{self.path}', which ends in pure noise: there it says nothing about the "
                "image; use 'x' or 'v'"
            )


if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]


class SamplingConfig(FrozenConfig):
    """How images are drawn from a trained denoiser."""

    sampler: SamplerName = Field("heun", description="integrator from noise to image")
    num_steps: int = Field(
        32, ge=1, le=4000, description="steps of the sampler; how often each calls the network is in `model/sampler_table.py`"
    )
    spacing: Literal["linspace", "leading", "trailing"] = Field(
        "linspace", description="which timesteps of the path are visited (Lin et al. 2023, table 2)"
    )
    eta: float = Field(
        0.0, ge=0, le=1, description=f"{', '.join(samplers_that_use_eta())}: share of the posterior noise added back at each step"
    )
    time_shift: float = Field(1.0, gt=0, le=100, description="a > 1 spends more of the steps at high noise")
    clip_x: bool = Field(True, description="clip each prediction of the clean image to [-1, 1]")
    seed: int = Field(0, ge=0, lt=2**63, description="image i is a function of (weights, seed, i)")
    ema: str = Field(
        "0.1", description="which average of the weights: a tracked sigma_rel such as '0.1', 'classic', or 'none' for the raw weights"
    )


def student_sampling(identity: JsonObject, ema: str) -> SamplingConfig | None:
    """Return how images are drawn from the student of few steps whose checkpoint has `identity`; None if it is no student."""
    distill = identity.get("distill")
    return None if distill is None else SamplingConfig(sampler=STUDENT_SAMPLER, num_steps=distill["steps"], ema=ema)


class ModelSpec(FrozenConfig):
    """What a generator needs besides the weights: all that is known of a registered version or an imported checkpoint."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    precision: Precision

    @classmethod
    def from_identity(cls, identity: JsonObject) -> Self:
        """Return the model of a checkpoint whose state file holds `identity`; an imported one names no precision and has float32.

        Raises:
            ValueError: if `identity` names no network, or an impossible one.
        """
        sections = {name: identity.get(name) for name in ("network", "diffusion")}
        precision = identity.get("training", {}).get("precision", "float32")
        return cls.model_validate({**sections, "precision": precision}, strict=False)  # JSON has lists where the configuration has tuples


class TrainingRecipe(FrozenConfig):
    """What weights are trained with: everything that they depend on, besides the data.

    A recipe with `distill` is complete once its `teacher` was looked up.
    """

    network: NetworkConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    distill: DistillConfig | None = Field(None, exclude_if=lambda distill: distill is None)
    teacher: Teacher | None = Field(None, exclude_if=lambda teacher: teacher is None)

    @property
    def model_spec(self) -> ModelSpec:
        """What a generator needs of it."""
        return ModelSpec(network=self.network, diffusion=self.diffusion, precision=self.training.precision)

    def identity(self, dataset_digest: str) -> JsonObject:
        """Return what makes a run on this data this run, as JSON; it is stored with every checkpoint and compared on resume.

        Raises:
            ValueError: if the teacher of a distillation was not looked up.
        """
        return {
            "dataset_digest": dataset_digest,
            "network": self.network.model_dump(mode="json"),
            "diffusion": self.diffusion.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "training": self.training.identity(),
            "training_version": TRAINING_VERSION,
            **distillation_identity(self.distill, self.teacher),
        }


class Recipe(TrainingRecipe):
    """A whole run besides its data: what the weights are trained with, and how its sample grids are drawn."""

    sampling: SamplingConfig

    @property
    def training_recipe(self) -> TrainingRecipe:
        """What the weights are trained with alone: what manifests hold."""
        return TrainingRecipe.model_validate({name: getattr(self, name) for name in TrainingRecipe.model_fields})
