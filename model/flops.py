"""Count the floating-point operations of a network, by running it on the meta device.

A multiply-add counts as two operations; only matrix products, convolutions and attention are counted, as in papers. Allocates no memory for
weights or activations.
"""

import torch
from torch import nn

from model.config import NetworkConfig
from model.denoiser import build_denoiser

_TRAINED_PASSES = 3


def forward_flops(config: NetworkConfig) -> float:
    """Return the operations of one forward pass for one image of `config.image_px`."""
    with torch.device("meta"):
        return flops_of(build_denoiser(config), config.image_px)


def flops_of(network: nn.Module, image_px: int) -> float:
    """Return the operations of one forward pass of a `network` on the meta device for one image of `image_px`."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - imports Triton, and is not used on CPUs

    with torch.device("meta"):
        image, timestep = torch.empty(1, 3, image_px, image_px), torch.empty(1)
    # In training mode and with gradients: torch's fused attention of the other mode is not counted.
    with FlopCounterMode(display=False) as counter:
        network.train()(image, timestep)
    return float(counter.get_total_flops())


def passes_per_image(*, distilled: bool) -> int:
    """Return the operations of a training step for one image in forward passes: a backward pass costs two.

    A distillation trains two networks, and calls the teacher once.
    """
    return 2 * _TRAINED_PASSES + 1 if distilled else _TRAINED_PASSES
