"""Networks that are not at their start, where the last layers are zero."""

import torch
from torch import nn


def shaken(network: nn.Module, scale: float = 0.1) -> nn.Module:
    """Move the weights off their zero initialisation, always by the same numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network
