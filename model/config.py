"""What defines a model and its training: the typed, immutable sections that `model/` reads.

Promises: a value that validates here can be built and trained; every bound names its unit. Validation is strict: "8" and
8.0 are not 8, NaN is not a number, an unknown key is an error. Values of the presets are in `pipeline/presets/`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from model.batching import BatchPlan, plan_batch
from model.canonical import JsonObject
from model.frozen_config import FrozenConfig
from model.sampler_table import SAMPLERS, samplers_that_use_eta

TRAINING_VERSION = 2
"""The version of the training maths. Part of every run key: raise it when a change moves the numbers of a run, and only then."""

Precision = Literal["float32", "bfloat16"]


class NetworkConfig(FrozenConfig):
    """The denoiser: a convolutional encoder-decoder with skips around a Diffusion Transformer."""

    image_px: int = Field(ge=8, le=2048, description="side of the square training images in pixels")
    codec: Literal["residual", "plain", "seed_compat"] = Field(
        "residual",
        description="residual: space-to-depth and residual blocks; plain: strided convolutions, latent_channels wide (`seed`); "
        "seed_compat: the whole network of the published checkpoint dit_final_12_f_250.pth, with blocks of its own",
    )
    stem_px: int = Field(2, ge=1, le=8, description="residual codec: pixels folded into channels before the first level, per side")
    channels: tuple[int, ...] = Field((), max_length=6, description="residual codec: channels per level, finest first")
    res_blocks: tuple[int, ...] = Field(
        (), max_length=6, description="residual codec: residual blocks per level, in the encoder and again in the decoder"
    )
    latent_channels: int = Field(ge=1, le=4096, description="channels of the latent that the transformer reads")
    width: int = Field(ge=8, le=8192, description="transformer width")
    depth: int = Field(ge=1, le=128, description="transformer blocks")
    heads: int = Field(ge=1, le=128, description="attention heads")
    patch_px: int = Field(ge=1, le=16, description="latent positions per token, per side")
    block: Literal["modern", "dit"] = Field(
        "modern", description="modern: RMSNorm, QK-norm, axial RoPE, SwiGLU; dit: LayerNorm, sin-cos positions, GELU (Peebles & Xie 2023)"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability inside the transformer blocks")

    @property
    def levels(self) -> int:
        """Resolutions of the codec, the latent's included."""
        return len(self.channels) if self.codec == "residual" else 4

    @property
    def latent_stride_px(self) -> int:
        """Pixels per latent position, per side."""
        return (self.stem_px if self.codec == "residual" else 1) * 2 ** (self.levels - 1)

    @property
    def total_stride_px(self) -> int:
        """Pixels per token, per side: every image side must be a multiple of it."""
        return self.latent_stride_px * self.patch_px

    def check_sides(self, height: int, width: int) -> None:
        """Refuse images that do not divide into tokens.

        Raises:
            ValueError: if a side is not a multiple of `total_stride_px`.
        """
        stride_px = self.total_stride_px
        if height % stride_px or width % stride_px:
            raise ValueError(f"image sides {height}x{width} must be multiples of {stride_px}, the network's total stride")

    def problems(self) -> Iterator[str]:
        if self.codec == "residual" and (not self.channels or len(self.channels) != len(self.res_blocks)):
            yield (f"channels {list(self.channels)} and res_blocks {list(self.res_blocks)} must name the same levels, at least one")
        if self.codec != "residual" and (self.channels or self.res_blocks):
            yield f"channels and res_blocks belong to the residual codec: leave them out with codec = '{self.codec}'"
        if self.codec == "seed_compat" and self.dropout > 0:
            yield "codec 'seed_compat' has no dropout: set dropout = 0"
        if any(c < 4 or c % 4 for c in self.channels):
            yield f"channels {list(self.channels)} must be multiples of 4 (group normalisation)"
        if any(n < 1 for n in self.res_blocks):
            yield f"res_blocks {list(self.res_blocks)} must be at least 1 per level"
        if self.width % self.heads:
            yield f"width {self.width} must be a multiple of heads {self.heads}"
        elif (self.width // self.heads) % 4:
            yield f"width / heads = {self.width // self.heads} must be a multiple of 4 (rotary positions in two axes)"
        if self.levels and self.image_px % self.total_stride_px:
            yield (
                f"image_px {self.image_px} must be a multiple of {self.total_stride_px} "
                f"(latent stride {self.latent_stride_px} x patch_px {self.patch_px})"
            )


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
    time_shift: float = Field(
        1.0, gt=0, le=100, description="t' = a t / (1 + (a - 1) t): a > 1 trains at more noise, for larger images (Esser et al. 2024)"
    )

    def problems(self) -> Iterator[str]:
        if self.path in ("rectified_flow", "vp_zero_snr") and self.prediction == "eps":
            yield (
                f"prediction 'eps' cannot be used with path '{self.path}', which ends in pure noise: there it says nothing about the "
                "image; use 'x' or 'v'"
            )


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
    checkpoint_every_s: float = Field(300.0, ge=1, description="wall-clock seconds between checkpoints: the most work that a kill may cost")
    checkpoints_to_keep: int = Field(3, ge=2, description="newest checkpoints kept in object storage")
    checkpoints_best: int = Field(1, ge=0, description="checkpoints with the best evaluation that are kept besides")
    checkpoint_keep_every_steps: int | None = Field(
        None, gt=0, description="a checkpoint is made after every so many steps and kept for good. Default: none"
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

    def identity(self) -> JsonObject:
        """Return the fields that decide the numbers of a run; the others (how long, how often, on what) may change on resume."""
        return self.model_dump(mode="json", include={"batch_images", "seed", "horizontal_flip", "ema_sigma_rel", "ema_decay", "precision"})


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
    """What weights are trained with: everything that they depend on, besides the data."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig

    @property
    def model_spec(self) -> ModelSpec:
        """What a generator needs of it."""
        return ModelSpec(network=self.network, diffusion=self.diffusion, precision=self.training.precision)

    def identity(self, dataset_digest: str) -> JsonObject:
        """Return what makes a run on this data this run, as JSON; it is stored with every checkpoint and compared on resume."""
        return {
            "dataset_digest": dataset_digest,
            "network": self.network.model_dump(mode="json"),
            "diffusion": self.diffusion.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "training": self.training.identity(),
            "training_version": TRAINING_VERSION,
        }


class Recipe(TrainingRecipe):
    """A whole run besides its data: what the weights are trained with, and how its sample grids are drawn."""

    sampling: SamplingConfig
