"""Estimate the device memory of a training, from the shapes of one forward pass; allocates none of it.

The bytes that are alive after the forward pass are within one percent of the peak of the backward pass, and they grow linearly with the
depth of the core and with the number of images. So four passes with fake tensors (depths one and two, one and two images) give those of
any depth and batch. Norms compute in float32 under bfloat16, as CUDA's autocast has it and the CPU's has not.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from model.config import NetworkConfig, TrainingConfig
from model.denoiser import build_denoiser
from model.memory import LiveBytes, largest_power_of_two

FLOAT_BYTES = 4
CONTEXT_BYTES = int(2e9)
"""What CUDA, its libraries and fragmentation take beside the tensors, roughly."""
COMPILED_SHARE = 0.48
"""Bytes per image that a compiled network keeps, relative to an eager one: an H100 took 32.2 GB at most for `celebahq256-b` with
128 images per pass, which is 0.473; see docs/performance.md."""
_NORMS = ("group_norm", "layer_norm", "rms_norm")


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device of a training."""

    parameters: int
    """Number of parameters."""
    states_bytes: int
    """Weights, gradients, both moments of AdamW and the averages, all in float32; of a distillation those of all three networks."""
    pass_bytes: int
    """What a forward pass keeps whatever its number of images, like weights that were cast."""
    image_bytes: int
    """What it keeps for each image."""

    def bytes_of(self, microbatch_images: int, *, resident_bytes: int = 0) -> int:
        """Return the bytes for one pass of so many images, with `resident_bytes` of data on the device."""
        return self.states_bytes + self.pass_bytes + microbatch_images * self.image_bytes + resident_bytes

    def largest_microbatch(self, device_bytes: float, *, resident_bytes: int = 0) -> int:
        """Return the largest power of two of images per pass that fits a device, 0 if not even one does."""
        left = int(device_bytes) - self.bytes_of(0, resident_bytes=resident_bytes)
        return largest_power_of_two(left // self.image_bytes) if left >= self.image_bytes else 0


@lru_cache(maxsize=32)
def training_memory(network: NetworkConfig, training: TrainingConfig, *, distilled: bool = False) -> TrainingMemory:
    """Estimate the memory of training `network` on CUDA, or on a CPU if it computes in float32.

    A distillation has the weights of its teacher and the states of a second trained network besides, and the passes of both at once.
    """
    live = {(depth, images): _live_bytes(network, training, depth, images) for depth in (1, 2) for images in (1, 2)}
    per_image = {depth: live[depth, 2] - live[depth, 1] for depth in (1, 2)}
    fixed = {depth: live[depth, 1] - per_image[depth] for depth in (1, 2)}
    parameters = _count_parameters(network)
    share = COMPILED_SHARE if training.compile else 1.0
    trained = 2 if distilled else 1
    return TrainingMemory(
        parameters=parameters,
        states_bytes=checkpoint_bytes(network, training, distilled=distilled) + FLOAT_BYTES * parameters * (3 if distilled else 1),
        pass_bytes=trained * _at_depth(fixed, network.depth),
        image_bytes=max(1, int(trained * share * _at_depth(per_image, network.depth))),
    )


def checkpoint_bytes(network: NetworkConfig, training: TrainingConfig, *, distilled: bool = False) -> int:
    """Return the size of a checkpoint of `network`: weights, both moments of AdamW and the averages, all in float32.

    A distillation trains a second network of that size, which has no averages.
    """
    averages = len(training.ema_sigma_rel) + (training.ema_decay is not None)
    return FLOAT_BYTES * _count_parameters(network) * ((6 if distilled else 3) + averages)


def _count_parameters(network: NetworkConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_denoiser(network).parameters())


def _at_depth(by_depth: dict[int, int], depth: int) -> int:
    return max(0, by_depth[1] + (depth - 1) * (by_depth[2] - by_depth[1]))


def _live_bytes(network: NetworkConfig, training: TrainingConfig, depth: int, images: int) -> int:
    """Return the bytes that are alive after a forward pass in training mode."""
    with FakeTensorMode():
        with torch.device("cpu"):
            denoiser = build_denoiser(network.model_copy(update={"depth": depth}))
            denoiser.train()
            image, time = torch.empty(images, 3, network.image_px, network.image_px), torch.empty(images)
        denoiser.recompute_activations = training.activation_checkpointing
        half = training.precision == "bfloat16"
        with LiveBytes() as live, _NormsInFloat32(active=half), torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = denoiser(image, time).float().square().mean()
            kept = live.live
            del loss
    return kept


class _NormsInFloat32(TorchFunctionMode):
    """Computes norms in float32, and returns that, as CUDA's autocast does."""

    def __init__(self, *, active: bool) -> None:
        super().__init__()
        self._active = active

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._active and getattr(func, "__name__", "") in _NORMS:
            args = tuple(argument.float() if isinstance(argument, torch.Tensor) else argument for argument in args)
            kwargs = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))
