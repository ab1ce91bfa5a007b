"""A trained denoiser ready to draw: weights and their configuration in, images out.

Promises: image i is a function of (weights, sampling, i): images are drawn in passes of one fixed size, so how many are asked for at once
does not change them. The size of a pass is given, or found from the free memory; it moves an image by rounding at most. Where weights come
from is not known here.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from model.config import DiffusionConfig, NetworkConfig, SamplingConfig
from model.denoiser import build_denoiser
from model.diffusion import build_diffusion
from model.memory import MOST_IMAGES, images_that_fit
from model.sampling import denoiser_of, sample, to_uint8


class WeightsMismatch(ValueError):
    """The weights are not those of the configured network."""


class Generator:
    """Draws images from one set of weights."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        *,
        device: torch.device,
        precision: str = "float32",
        sharers: int = 1,
    ) -> None:
        self.image_px = network.image_px
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

    def draw(
        self,
        sampling: SamplingConfig,
        indices: Sequence[int],
        *,
        pass_images: int | None = None,
        limit: int = MOST_IMAGES,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images with `indices`, drawn `pass_images` at a time (the last pass is filled up and cut).

        Without `pass_images` as many are drawn at once as fit into memory, up to `limit`; if they do not fit after all, half as many.
        """
        size = pass_images or min(self.fitting_images(), limit)
        while True:
            try:
                return self._drawn(sampling, indices, size, on_step)
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

    def _drawn(
        self, sampling: SamplingConfig, indices: Sequence[int], pass_images: int, on_step: Callable[[int, int], None]
    ) -> UInt8[Tensor, "b 3 h w"]:
        drawn = []
        passes = [list(indices[start : start + pass_images]) for start in range(0, len(indices), pass_images)]
        for number, chosen in enumerate(passes):
            filled = torch.tensor(chosen + [chosen[-1]] * (pass_images - len(chosen)), device=self.device)

            def within(done: int, total: int, number: int = number) -> None:
                on_step(number * total + done, len(passes) * total)

            denoise = denoiser_of(self._call, self._diffusion, clip_x=sampling.clip_x)
            images = sample(denoise, self._diffusion.path, sampling, filled, self.image_px, on_step=within)
            drawn.append(to_uint8(images[: len(chosen)]).cpu())
        return torch.cat(drawn)

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            return self._network(x.contiguous(memory_format=torch.channels_last), t)
