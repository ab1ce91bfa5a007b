"""Generate images from trained weights and their configuration.

Promises: image i is a function of (weights, sampling, i), and of the guide's weights if there is one: images are generated in passes of one
fixed size, so their number does not change them. The size of a pass is a parameter or follows from the free memory; it changes an image by
rounding at most. Does not find weights; see `components/weights/find.py`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from model.compilation import compile_network
from model.config import DiffusionConfig, ModelSpec, NetworkConfig, Precision, SamplingConfig
from model.denoiser import denoiser_with
from model.diffusion import build_diffusion
from model.half_weights import halve_weights
from model.memory import MAX_IMAGES, max_images_in_memory
from model.samplers import Denoise
from model.sampling import autoguide, clip_estimates, denoiser_of, sample, to_uint8


class WeightsMismatch(ValueError):
    """The weights are not those of the configured network, or not finite."""


class GuideMismatch(ValueError):
    """The guide was trained on images of another side or on another path than the model."""


@dataclass(frozen=True)
class Guidance:
    """Autoguidance by a weaker model (Karras et al. 2024): its weight, and the interval of flow times in which it applies, ends included.

    `weight` 1 disables guidance; time runs from 0 (image) to 1 (noise).
    """

    guide: "Generator"
    weight: float
    t_low: float = 0.0
    t_high: float = 1.0


class Generator:
    """Generates images from one set of weights."""

    def __init__(
        self,
        weights: dict[str, Tensor],
        network: NetworkConfig,
        diffusion: DiffusionConfig,
        *,
        device: torch.device,
        precision: Precision = "float32",
        sharers: int = 1,
        compiled: bool = False,
    ) -> None:
        self.image_px = network.image_px
        self.path = diffusion.path
        self.device = device
        self._diffusion = build_diffusion(diffusion)
        self._bfloat16 = precision == "bfloat16"
        self._sharers = sharers
        self._max_images: int | None = None
        try:
            self._network = denoiser_with(network, weights, device)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights do not fit the configured network: {' '.join(str(error).split())[:300]}") from error
        # A generator of these would draw images of one colour and fail nowhere.
        if broken := [name for name, tensor in self._network.state_dict().items() if not torch.isfinite(tensor).all()]:
            raise WeightsMismatch(f"the weights are not finite: {', '.join(broken[:3])}" + (" and others" if len(broken) > 3 else ""))
        self._network.eval()
        if self._bfloat16:
            halve_weights(self._network)
        self._forward = compile_network(_twin(self._network), by_block=True) if compiled else self._network

    @classmethod
    def from_spec(
        cls, weights: dict[str, Tensor], spec: ModelSpec, *, device: torch.device, sharers: int = 1, compiled: bool = False
    ) -> Self:
        """Return the generator of the model `spec` with `weights`; `sharers` processes share the memory of `device`.

        A `compiled` one pays off after thousands of images, drawn in passes of one size: another size is compiled anew.

        Raises:
            WeightsMismatch: if the weights are not those of its network.
        """
        return cls(weights, spec.network, spec.diffusion, device=device, precision=spec.precision, sharers=sharers, compiled=compiled)

    def draw(
        self,
        sampling: SamplingConfig,
        indices: Sequence[int],
        *,
        guidance: Guidance | None = None,
        pass_images: int | None = None,
        limit: int = MAX_IMAGES,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Return the images with `indices`, generated `pass_images` at a time (the last pass is padded and cut).

        Without `pass_images`, a pass has as many images as fit into memory, up to `limit`, and half as many after each out-of-memory error.

        Raises:
            GuideMismatch: if the guide was trained on images of another side or on another path.
        """
        denoise = self._denoiser(guidance, clip_x=sampling.clip_x)
        counts = [self.max_images, *([] if guidance is None else [guidance.guide.max_images])]
        size = pass_images or min(limit, *(count() for count in counts))
        while True:
            try:
                return self._draw_passes(denoise, sampling, indices, size, on_step)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._max_images = size // 2
                torch.cuda.empty_cache()

    def max_images(self) -> int:
        """Return how many images fit into memory at once, measured at the first call."""
        if self._max_images is None:

            def probe(count: int) -> None:
                with torch.inference_mode():
                    side = self.image_px
                    zeros = torch.zeros(count, 3, side, side, device=self.device)
                    self._run(self._network, zeros, torch.zeros(count, device=self.device))

            self._max_images = max_images_in_memory(probe, self.device, sharers=self._sharers)
        return self._max_images

    def _denoiser(self, guidance: Guidance | None, *, clip_x: bool) -> Denoise:
        """Return the estimator of the clean image, guided before it is clipped."""
        denoise = denoiser_of(self._call, self._diffusion, clip_x=False)
        if guidance is not None:
            guide = guidance.guide
            for field, own, other in (("image_px", self.image_px, guide.image_px), ("path", self.path, guide.path)):
                if own != other:
                    raise GuideMismatch(f"the guide has {field} {other!r}, the model that it guides has {own!r}")
            weak = denoiser_of(guide._call, guide._diffusion, clip_x=False)
            denoise = autoguide(denoise, weak, guidance.weight, t_low=guidance.t_low, t_high=guidance.t_high)
        return clip_estimates(denoise) if clip_x else denoise

    def _draw_passes(
        self,
        denoise: Denoise,
        sampling: SamplingConfig,
        indices: Sequence[int],
        pass_images: int,
        on_step: Callable[[int, int], None],
    ) -> UInt8[Tensor, "b 3 h w"]:
        images = []
        passes = [list(indices[start : start + pass_images]) for start in range(0, len(indices), pass_images)]
        for pass_index, pass_indices in enumerate(passes):
            padded = torch.tensor(pass_indices + [pass_indices[-1]] * (pass_images - len(pass_indices)), device=self.device)

            def on_pass_step(done: int, total: int, pass_index: int = pass_index) -> None:
                on_step(pass_index * total + done, len(passes) * total)

            pixels = sample(denoise, self._diffusion.path, sampling, padded, self.image_px, on_step=on_pass_step)
            images.append(to_uint8(pixels[: len(pass_indices)]).cpu())
        return torch.cat(images)

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        return self._run(self._forward, x, t)

    def _run(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            return cast(Tensor, network(x.contiguous(memory_format=torch.channels_last), t))


def _twin(network: nn.Module) -> nn.Module:
    """Return a copy of `network` with the same weights in memory, whose functions can be replaced.

    Once they are, the copy refers to itself: only a search for reference cycles frees its weights.
    """
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
