"""A trained denoiser ready to draw: weights and their configuration in, images out.

Promises: image i is a function of (weights, sampling, i), and of the guide's weights if there is one: images are drawn in passes of one
fixed size, so how many are asked for at once does not change them. The size of a pass is given, or found from the free memory; it moves an
image by rounding at most. Where weights come from is not known here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from model.config import DiffusionConfig, ModelSpec, NetworkConfig, Precision, SamplingConfig
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.memory import MOST_IMAGES, images_that_fit
from model.samplers import Denoise
from model.sampling import autoguided, clipped, denoiser_of, sample, to_uint8


class WeightsMismatch(ValueError):
    """The weights are not those of the configured network."""


class GuideMismatch(ValueError):
    """The guide cannot guide this model: it was trained on images of another side, or on another path."""


@dataclass(frozen=True)
class Guidance:
    """A weaker model to keep away from (autoguidance, Karras et al. 2024), how far, and between which times, both included.

    `weight` 1 is the model alone; time runs from 0 (image) to 1 (noise).
    """

    guide: "Generator"
    weight: float
    t_low: float = 0.0
    t_high: float = 1.0


class Generator:
    """Draws images from one set of weights."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        *,
        device: torch.device,
        precision: Precision = "float32",
        sharers: int = 1,
    ) -> None:
        self.image_px = network.image_px
        self.path = diffusion.path
        self.device = device
        self._diffusion = build_diffusion(diffusion)
        self._bfloat16 = precision == "bfloat16"
        self._sharers = sharers
        self._fitting: int | None = None
        with torch.device("meta"):
            self._network = build_denoiser(network)
        self._network.to_empty(device=device)
        try:
            self._network.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights do not fit the configured network: {' '.join(str(error).split())[:300]}") from error
        self._network.eval().to(memory_format=torch.channels_last)

    @classmethod
    def from_spec(cls, weights: dict[str, Tensor], spec: ModelSpec, *, device: torch.device, sharers: int = 1) -> Self:
        """Return the generator of the model `spec` with `weights`; `sharers` processes share the memory of `device`.

        Raises:
            WeightsMismatch: if the weights are not those of its network.
        """
        return cls(weights, spec.network, spec.diffusion, device=device, precision=spec.precision, sharers=sharers)

    def draw(
        self,
        sampling: SamplingConfig,
        indices: Sequence[int],
        *,
        guidance: Guidance | None = None,
        pass_images: int | None = None,
        limit: int = MOST_IMAGES,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images with `indices`, drawn `pass_images` at a time (the last pass is filled up and cut).

        Without `pass_images` as many are drawn at once as fit into memory, up to `limit`; if they do not fit after all, half as many.

        Raises:
            GuideMismatch: if the guide of `guidance` does not fit.
        """
        denoise = self._denoiser(guidance, clip_x=sampling.clip_x)
        fitting = [self.fitting_images, *([] if guidance is None else [guidance.guide.fitting_images])]
        size = pass_images or min(limit, *(found() for found in fitting))
        while True:
            try:
                return self._drawn(denoise, sampling, indices, size, on_step)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._fitting = size // 2
                torch.cuda.empty_cache()

    def fitting_images(self) -> int:
        """Return how many images fit into memory at once, found at the first call."""
        if self._fitting is None:

            def probe(count: int) -> None:
                with torch.inference_mode():
                    self._call(
                        torch.zeros(count, 3, self.image_px, self.image_px, device=self.device), torch.zeros(count, device=self.device)
                    )

            self._fitting = images_that_fit(probe, self.device, sharers=self._sharers)
        return self._fitting

    def _denoiser(self, guidance: Guidance | None, *, clip_x: bool) -> Denoise:
        """Return the estimator of the clean image, with the guide's taken into account before clipping."""
        denoise = denoiser_of(self._call, self._diffusion, clip_x=False)
        if guidance is not None:
            guide = guidance.guide
            for what, own, other in (("image_px", self.image_px, guide.image_px), ("path", self.path, guide.path)):
                if own != other:
                    raise GuideMismatch(f"the guide has {what} {other!r}, the model that it should guide {own!r}")
            bad = denoiser_of(guide._call, guide._diffusion, clip_x=False)
            denoise = autoguided(denoise, bad, guidance.weight, t_low=guidance.t_low, t_high=guidance.t_high)
        return clipped(denoise) if clip_x else denoise

    def _drawn(
        self,
        denoise: Denoise,
        sampling: SamplingConfig,
        indices: Sequence[int],
        pass_images: int,
        on_step: Callable[[int, int], None],
    ) -> UInt8[Tensor, "b 3 h w"]:
        drawn = []
        passes = [list(indices[start : start + pass_images]) for start in range(0, len(indices), pass_images)]
        for number, chosen in enumerate(passes):
            filled = torch.tensor(chosen + [chosen[-1]] * (pass_images - len(chosen)), device=self.device)

            def within(done: int, total: int, number: int = number) -> None:
                on_step(number * total + done, len(passes) * total)

            images = sample(denoise, self._diffusion.path, sampling, filled, self.image_px, on_step=within)
            drawn.append(to_uint8(images[: len(chosen)]).cpu())
        return torch.cat(drawn)

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            return self._network(x.contiguous(memory_format=torch.channels_last), t)
