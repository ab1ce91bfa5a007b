"""Networks of other libraries, trained and sampled as those libraries do, for `learning.py`.

Promises: schedules, averages and samplers are the libraries' own. The loops repeat those of diffusers' `train_unconditional.py` and of
`Trainer` in denoising-diffusion-pytorch, with one change in the peers' favour: the learning rate is 1e-3, rises over a tenth of the steps
and falls to zero. Theirs, 1e-4 with a warm-up of 500 steps and 1e-4 throughout, learn nothing in a few hundred steps.
"""

import contextlib
import copy
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from benchmarks.contenders import CONTENDERS, PASS_IMAGES, Contender, Training, recipe_of
from benchmarks.small_peers import DiffusersDiT, DiffusersUNet, LucidrainsUNet
from model.config import SamplingConfig
from model.dataset import Pack
from model.denoiser import num_parameters
from model.sampler_table import SAMPLERS
from model.sampling import to_uint8

_TIMESTEPS = 1000
_LEARNING_RATE = 1e-3
_MAX_NORM = 1.0


class PeerTraining(ABC):
    """One training with the recipe of another library on the CPU, step by step: shuffled images, mirrored at random."""

    def __init__(self, network: nn.Module, pack: Pack, *, batch_images: int, seed: int, steps: int) -> None:
        self._network = network.to(memory_format=torch.channels_last)
        self._images = torch.from_numpy(np.array(pack.images))
        self._batch_images, self._steps, self._done = batch_images, steps, 0
        self._random = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._optimizer = self._new_optimizer()

    @property
    def num_parameters(self) -> int:
        return num_parameters(self._network)

    def step(self) -> float:
        """Train one step and return its mean loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * self._rate_share()
        x = self._next_images()
        timesteps = torch.randint(_TIMESTEPS, (len(x),), generator=self._random)
        loss = self._loss(x, torch.randn(x.shape, generator=self._random), timesteps)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), _MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._done += 1
        self._update_average()
        return float(loss)

    def sample(self, count: int, sampling: SamplingConfig) -> np.ndarray:
        """Return `count` images (n, h, w, 3), uint8, by DDIM with as many network calls as `sampling` takes."""
        calls, side = SAMPLERS[sampling.sampler].calls(sampling.num_steps), self._images.shape[1]
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sampling.seed)
            parts = [self._sample((min(PASS_IMAGES, count - at), 3, side, side), calls) for at in range(0, count, PASS_IMAGES)]
        return to_uint8(torch.cat(parts)).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.inference_mode()
    def errors(self, faces: np.ndarray, times: Sequence[float]) -> list[float]:
        """Return the mean squared error of the clean image of `faces` (n, h, w, 3), uint8, with fixed noise.

        Times are those of the straight path: each stands for the timestep with the nearest ratio of signal to noise.
        """
        x = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
        noise, alpha_bar = torch.Generator().manual_seed(0), self._alpha_bar()
        errors = []
        for time_of_path in times:
            e = torch.randn(x.shape, generator=noise)
            k = int((alpha_bar.logit() - 2 * math.log((1 - time_of_path) / time_of_path)).abs().argmin())
            x_t = alpha_bar[k].sqrt() * x + (1 - alpha_bar[k]).sqrt() * e
            estimate = self._clean_image(x_t, torch.full((len(x),), k, dtype=torch.int64))
            errors.append(round(float((estimate - x).square().mean()), 4))
        return errors

    def _next_images(self) -> Float[Tensor, "b 3 h w"]:
        if len(self._order) < self._batch_images:
            self._order = torch.cat([self._order, torch.randperm(len(self._images), generator=self._random)])
        rows, self._order = self._order.split([self._batch_images, len(self._order) - self._batch_images])
        x = self._images[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        mirrored = torch.rand(len(x), generator=self._random) < 1 / 2
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    def _rate_share(self) -> float:
        warmup = max(1, self._steps // 10)
        if self._done < warmup:
            return (self._done + 1) / warmup
        return (1 + math.cos(math.pi * (self._done - warmup) / max(1, self._steps - warmup))) / 2

    @abstractmethod
    def _new_optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def _loss(self, x: Tensor, noise: Tensor, timesteps: Int64[Tensor, " b"]) -> Float[Tensor, ""]: ...

    @abstractmethod
    def _update_average(self) -> None: ...

    @abstractmethod
    def _alpha_bar(self) -> Float[Tensor, " timesteps"]: ...

    @abstractmethod
    def _clean_image(self, x_t: Tensor, timesteps: Int64[Tensor, " b"]) -> Tensor: ...

    @abstractmethod
    def _sample(self, shape: tuple[int, ...], calls: int) -> Tensor:
        """Return images in [-1, 1] from noise of torch's global generator."""


class DiffusersTraining(PeerTraining):
    """DDPM with the linear schedule, noise as the target, AdamW, and an average of the weights that widens with the steps."""

    def __init__(self, network: nn.Module, pack: Pack, *, batch_images: int, seed: int, steps: int) -> None:
        super().__init__(network, pack, batch_images=batch_images, seed=seed, steps=steps)
        from diffusers import DDPMScheduler  # noqa: PLC0415 - an extra; importing it takes seconds
        from diffusers.training_utils import EMAModel  # noqa: PLC0415 - as above

        self._schedule = DDPMScheduler(num_train_timesteps=_TIMESTEPS, beta_schedule="linear")
        self._average = EMAModel(self._network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._network.parameters(), lr=_LEARNING_RATE, betas=(0.95, 0.999), weight_decay=1e-6)

    def _loss(self, x: Tensor, noise: Tensor, timesteps: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        return F.mse_loss(self._network(self._schedule.add_noise(x, noise, timesteps), timesteps.float()), noise)

    def _update_average(self) -> None:
        self._average.step(self._network.parameters())

    def _alpha_bar(self) -> Float[Tensor, " timesteps"]:
        return self._schedule.alphas_cumprod

    def _clean_image(self, x_t: Tensor, timesteps: Int64[Tensor, " b"]) -> Tensor:
        alpha_bar = self._alpha_bar()[timesteps][:, None, None, None]
        noise = self._averaged_network()(x_t, timesteps.float())
        return (x_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()

    def _sample(self, shape: tuple[int, ...], calls: int) -> Tensor:
        from diffusers import DDIMScheduler  # noqa: PLC0415 - as above

        network, sampler = self._averaged_network(), DDIMScheduler.from_config(self._schedule.config)
        sampler.set_timesteps(calls)
        x = torch.randn(shape)
        for timestep in sampler.timesteps:
            noise = network(x, timestep.expand(len(x)).float())
            x = sampler.step(noise, timestep, x).prev_sample
        return x

    def _averaged_network(self) -> nn.Module:
        network = copy.deepcopy(self._network).eval()
        self._average.copy_to(network.parameters())
        return network


class LucidrainsTraining(PeerTraining):
    """The sigmoid schedule, velocity as the target, Adam, and an average of decay 0.995 every tenth step."""

    def __init__(self, network: nn.Module, pack: Pack, *, batch_images: int, seed: int, steps: int) -> None:
        super().__init__(network, pack, batch_images=batch_images, seed=seed, steps=steps)
        from denoising_diffusion_pytorch import GaussianDiffusion  # noqa: PLC0415 - an extra; importing it takes seconds
        from ema_pytorch import EMA  # noqa: PLC0415 - as above

        self._diffusion = GaussianDiffusion(self._network.network, image_size=self._images.shape[1], auto_normalize=False)
        self._average = EMA(self._diffusion, beta=0.995, update_every=10)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.99))

    def _loss(self, x: Tensor, noise: Tensor, timesteps: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        return self._diffusion.p_losses(x, timesteps, noise)

    def _update_average(self) -> None:
        self._average.update()

    def _alpha_bar(self) -> Float[Tensor, " timesteps"]:
        return self._diffusion.alphas_cumprod

    def _clean_image(self, x_t: Tensor, timesteps: Int64[Tensor, " b"]) -> Tensor:
        return self._average.ema_model.model_predictions(x_t, timesteps).pred_x_start

    def _sample(self, shape: tuple[int, ...], calls: int) -> Tensor:
        diffusion = self._average.ema_model
        diffusion.sampling_timesteps = calls
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            return diffusion.ddim_sample(shape)


_OWN_RECIPES: dict[str, tuple[type[nn.Module], type[PeerTraining]]] = {
    "diffusers-unet-own-recipe": (DiffusersUNet, DiffusersTraining),
    "diffusers-dit-own-recipe": (DiffusersDiT, DiffusersTraining),
    "lucidrains-unet-own-recipe": (LucidrainsUNet, LucidrainsTraining),
}
NAMES = (*CONTENDERS, *_OWN_RECIPES)
"""All that `learning.py` can train."""


def training_of(name: str, pack: Pack, *, side_px: int, batch_images: int, seed: int, steps: int) -> Training | PeerTraining:
    """Return a training of one of `NAMES` that has taken no step."""
    if name not in _OWN_RECIPES:
        return Training(name, pack, side_px=side_px, batch_images=batch_images, seed=seed, steps=steps)
    network, training = _OWN_RECIPES[name]
    config = recipe_of(Contender(), side_px=side_px, batch_images=batch_images, seed=seed, steps=steps).network
    torch.manual_seed(seed)
    return training(network(config), pack, batch_images=batch_images, seed=seed, steps=steps)
