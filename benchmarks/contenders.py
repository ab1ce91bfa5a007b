"""What `learning.py` compares: `demo` without and with its share of the input, other networks, and changes of the recipe.

Promises: `plain-dit` has linear patches, blocks of Peebles & Xie 2023, and about as many parameters as `demo` (6 blocks of the same width;
patches that give 64 tokens). A contender that ends in `-ddpm` is trained and sampled as DDPM is: linear schedule, noise
as the target, uniform times, DDIM. Everything else is the preset's recipe.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.small_peers import DiffusersDiT, DiffusersUNet, LucidrainsUNet
from model.config import NetworkConfig, Recipe, SamplingConfig
from model.dataset import Pack
from model.denoiser import build_denoiser, num_parameters
from model.distributed import World
from model.dit import Core
from model.ema import EmaName
from model.ema_profiles import AveragedWeights, profiles_of
from model.layers import TimeEmbedding
from model.meter import Meter, hardware_of
from model.optim import build_optimizer
from model.sampler_table import SAMPLERS
from model.samplers import Denoise
from model.sampling import autoguide, clip_estimates, denoiser_of, sample, to_uint8
from model.training_step import TrainingStep
from pipeline.config import load_config

_PLAIN_DEPTH = 6
_PLAIN_TOKENS_PER_SIDE = 8
PASS_IMAGES = 64
"""Images that are drawn at a time."""
_DDPM = {"path": "vp_linear", "prediction": "eps", "weighting": "none", "times": "uniform"}


_MEAN_0 = {"logit_mean": 0.0}
_FEW_TOKENS: dict[str, object] = {
    "linear_path": True,
    "res_norm": "layer",
    "channels": (16, 32, 64, 64),
    "res_blocks": (1, 1, 1, 1),
    "latent_channels": 64,
}
"""One level more than `demo`, so a quarter of its tokens and of those of the plain transformer at 64 px: 16."""
_WITHOUT_SHARE: dict[str, object] = {"linear_path": False, "linear_output": False, "local_share": False}
_DEMO_TIMES: dict[str, object] = {"uniform_share": 0.0}
"""What contenders begin with: `demo` as it was before it took the settings that they compare."""
_GATED: dict[str, object] = {"linear_path": True, "linear_output": True, "local_share": True}
_TENTH = {"uniform_share": 0.1}
"""The times of `demo`, and a tenth of them anywhere, also near zero."""
_NOISIER: dict[str, object] = {**_TENTH, "logit_mean": 1.3}
"""The times of `demo` (mean 0.6) at twice the noise, log 2 more: the mean of four pixels, one of half the side, has half of their noise."""
_NOISIEST: dict[str, object] = {**_TENTH, "logit_mean": 2.0}
"""At four times the noise."""
_HALF_RATE = {"lr_peak": 1e-3, "lr_floor": 1e-4}
"""Half of the learning rate of `demo`."""
_PEERS = {"diffusers-unet": DiffusersUNet, "diffusers-dit": DiffusersDiT, "lucidrains-unet": LucidrainsUNet}
"""Networks of other libraries, under our recipe here; `peer_recipes.py` has their own."""


class PlainDiT(nn.Module):
    """Patches of pixels, transformer blocks, and a linear layer back to pixels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        patch_px = config.image_px // _PLAIN_TOKENS_PER_SIDE
        shape = config.model_copy(update={"block": "dit", "depth": _PLAIN_DEPTH, "latent_channels": 3, "patch_px": patch_px})
        self.time = TimeEmbedding(config.width)
        self.core = Core(shape)

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        return self.core(x, self.time(t))


@dataclass(frozen=True)
class Contender:
    """A network and what differs from the preset's recipe."""

    build: Callable[[NetworkConfig], nn.Module] = build_denoiser
    network: dict[str, object] = field(default_factory=dict)
    diffusion: dict[str, object] = field(default_factory=dict)
    optimizer: dict[str, object] = field(default_factory=dict)
    sampler: str | None = None


CONTENDERS = {
    "celebdit": Contender(),
    "plain-dit": Contender(build=PlainDiT),
    "celebdit-ddpm": Contender(diffusion=_DDPM, sampler="ddim"),
    "plain-dit-ddpm": Contender(build=PlainDiT, diffusion=_DDPM, sampler="ddim"),
    "sigmoid-weighting": Contender(diffusion={"weighting": "sigmoid"}),
    "uniform-times": Contender(diffusion={"times": "uniform"}),
    "uniform-share": Contender(diffusion=_TENTH),
    "linear-path": Contender(network={"linear_path": True}),
    "linear-path-stem-4": Contender(network={"linear_path": True, "stem_px": 4, "channels": (64, 96), "res_blocks": (1, 1)}),
    "linear-path-dit": Contender(
        network={"linear_path": True, "stem_px": 4, "channels": (32, 64), "res_blocks": (1, 1), "block": "dit", "depth": 5}
    ),
    "few-tokens": Contender(network=_FEW_TOKENS),
    "few-tokens-mean-0": Contender(network=_FEW_TOKENS, diffusion=_MEAN_0),
    "plain-dit-mean-0": Contender(build=PlainDiT, diffusion=_MEAN_0),
    "few-tokens-tenth": Contender(network=_FEW_TOKENS, diffusion=_TENTH),
    "local-share-tenth": Contender(network={**_FEW_TOKENS, **_GATED}, diffusion=_TENTH),
    "celebdit-local-share-tenth": Contender(network=_GATED, diffusion=_TENTH),
    **{f"groups-of-{n}": Contender(network={**_GATED, "group_channels": n}, diffusion=_TENTH) for n in (8, 16)},
    "layer-norms": Contender(network={**_GATED, "res_norm": "layer"}, diffusion=_TENTH),
    "augmented": Contender(network={**_GATED, "augmentation": 0.12}, diffusion=_TENTH),
    "codec-dropout": Contender(network={**_GATED, "codec_dropout": 0.1}, diffusion=_TENTH),
    "demo-half-rate": Contender(network=_GATED, diffusion=_TENTH, optimizer=_HALF_RATE),
    "demo-sigmoid": Contender(network=_GATED, diffusion={**_TENTH, "weighting": "sigmoid"}),
    "plain-dit-tenth": Contender(build=PlainDiT, diffusion=_TENTH),
    "local-share-half-rate": Contender(network={**_FEW_TOKENS, **_GATED}, diffusion=_TENTH, optimizer=_HALF_RATE),
    "plain-dit-half-rate": Contender(build=PlainDiT, diffusion=_TENTH, optimizer=_HALF_RATE),
    "local-share-noisier": Contender(network={**_FEW_TOKENS, **_GATED}, diffusion=_NOISIER, optimizer=_HALF_RATE),
    "group-norms-noisier": Contender(network={**_FEW_TOKENS, **_GATED, "res_norm": "group"}, diffusion=_NOISIER, optimizer=_HALF_RATE),
    **{
        f"groups-of-{n}-noisier": Contender(
            network={**_FEW_TOKENS, **_GATED, "res_norm": "group", "group_channels": n}, diffusion=_NOISIER, optimizer=_HALF_RATE
        )
        for n in (8, 16)
    },
    "plain-dit-noisier": Contender(build=PlainDiT, diffusion=_NOISIER, optimizer=_HALF_RATE),
    "local-share-noisiest": Contender(network={**_FEW_TOKENS, **_GATED}, diffusion=_NOISIEST, optimizer=_HALF_RATE),
    "plain-dit-noisiest": Contender(build=PlainDiT, diffusion=_NOISIEST, optimizer=_HALF_RATE),
    "small-guide": Contender(
        network={**_GATED, "channels": (16, 24, 32), "latent_channels": 16, "width": 64, "depth": 2, "heads": 2}, diffusion=_TENTH
    ),
    **{name: Contender(build=peer, diffusion=_TENTH) for name, peer in _PEERS.items()},
    **{f"{name}-noisier": Contender(build=peer, diffusion=_NOISIER, optimizer=_HALF_RATE) for name, peer in _PEERS.items()},
    "stem-4": Contender(network={"stem_px": 4, "channels": (64, 96), "res_blocks": (1, 1)}),
    "stem-1": Contender(network={"stem_px": 1, "channels": (16, 32, 48, 64), "res_blocks": (1, 1, 1, 1)}),
}


class Training:
    """One training of a contender on the CPU, step by step, with the averages that its recipe names."""

    def __init__(self, name: str, pack: Pack, *, side_px: int, batch_images: int, seed: int, steps: int) -> None:
        contender, device = CONTENDERS[name], torch.device("cpu")
        self._contender = contender
        self._recipe = recipe = recipe_of(contender, side_px=side_px, batch_images=batch_images, seed=seed, steps=steps)
        torch.manual_seed(seed)
        self._network = contender.build(recipe.network)
        self._network.to(memory_format=torch.channels_last)
        self._parameters = list(self._network.parameters())
        self._averages = {profile.name: AveragedWeights(profile, self._parameters) for profile in profiles_of(recipe.training)}
        meter = Meter(
            World(),
            hardware_of(recipe, device, price_per_device_hour=None),
            batch_images=batch_images,
            device=device,
            clock=time.monotonic,
        )
        optimizer = build_optimizer(self._network, recipe.optimizer)
        self._step = TrainingStep(recipe, pack, self._network, optimizer, world=World(), device=device, meter=meter, clock=time.monotonic)
        self._step.wrap_network()
        self._done = 0
        self._network.train()

    @property
    def num_parameters(self) -> int:
        return num_parameters(self._network)

    def step(self) -> float:
        """Train one step and return its mean loss."""
        loss = float(self._step.run(self._done))
        self._step.raise_if_nonfinite()
        self._done += 1
        for average in self._averages.values():
            average.update(self._parameters, self._done)
        return loss

    def sample(self, count: int, sampling: SamplingConfig, *, guide: "Training | None" = None, weight: float = 1.0) -> np.ndarray:
        """Return `count` images (n, h, w, 3), uint8, with the average that the recipe samples with.

        With a `guide`, estimates are moved away from its own by `weight`; 1 is without it.
        """
        if self._contender.sampler is not None:
            calls = SAMPLERS[sampling.sampler].calls(sampling.num_steps)
            sampling = sampling.model_copy(update={"sampler": self._contender.sampler, "num_steps": calls})
        denoise = self._denoiser() if guide is None else autoguide(self._denoiser(), guide._denoiser(), weight)
        denoise = clip_estimates(denoise) if sampling.clip_x else denoise
        path, side = self._step.diffusion.path, self._recipe.network.image_px
        parts = [
            to_uint8(sample(denoise, path, sampling, torch.arange(at, min(at + PASS_IMAGES, count)), side))
            for at in range(0, count, PASS_IMAGES)
        ]
        return torch.cat(parts).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.inference_mode()
    def errors(self, faces: np.ndarray, times: Sequence[float]) -> list[float]:
        """Return the mean squared error of the clean image at each of `times`, with fixed noise on `faces` (n, h, w, 3), uint8."""
        x = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
        network, diffusion, noise = self._averaged_network(), self._step.diffusion, torch.Generator().manual_seed(0)
        errors = []
        for time_of_path in times:
            e = torch.randn(x.shape, generator=noise)
            t = torch.full((len(x),), time_of_path, dtype=torch.float64)
            x_t = diffusion.add_noise(x, e, t)
            estimate = diffusion.clean_image(network(x_t, diffusion.path.timestep(t).float()), x_t, t)
            errors.append(round(float((estimate - x).square().mean()), 4))
        return errors

    def _denoiser(self) -> Denoise:
        """Return the estimator of the clean image, not clipped."""
        return denoiser_of(self._averaged_network(), self._step.diffusion, clip_x=False)

    def _averaged_network(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the network with the average of the weights that the recipe samples with."""
        names = [name for name, _ in self._network.named_parameters()]
        weights = dict(zip(names, self._averages[EmaName(self._recipe.sampling.ema)].tensors, strict=True))

        def estimate(x: Tensor, t: Tensor) -> Tensor:
            self._network.eval()
            output = torch.func.functional_call(self._network, weights, (x, t))
            self._network.train()
            return cast(Tensor, output)

        return estimate


def recipe_of(contender: Contender, *, side_px: int, batch_images: int, seed: int, steps: int) -> Recipe:
    """Return the recipe of `demo` for images of `side_px`, with a learning rate that decays over `steps`."""
    config = load_config("demo")
    diffusion = config.diffusion.model_copy(update={**_DEMO_TIMES, **contender.diffusion})
    return Recipe(
        network=config.network.model_copy(update={"image_px": side_px, **_WITHOUT_SHARE, **contender.network}),
        diffusion=diffusion,
        optimizer=config.optimizer.model_copy(
            update={"decay_steps": steps, "warmup_steps": min(config.optimizer.warmup_steps, steps // 2), **contender.optimizer}
        ),
        training=config.training.model_copy(update={"total_steps": steps, "batch_images": batch_images, "seed": seed}),
        sampling=config.sampling,
    )
