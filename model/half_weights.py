"""A bfloat16 copy of the weights that autocast would cast again in each pass, for sampling.

Promises: under autocast the network returns the same numbers as before, bit for bit; what autocast leaves in float32 stays so.
"""

import torch
from torch import nn

from model.denoiser import Denoiser

_CAST_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
_FULL_PRECISION = ("time.", "augmentation.", "decoder.out.", "linear_path.out.", "linear_path.share.")
"""The embeddings of time and augmentation and what makes the output, which run outside autocast."""


def halve_weights(network: nn.Module) -> None:
    """Cast the weights of `network` in place, if it is a `Denoiser`; other networks are left alone."""
    if not isinstance(network, Denoiser):
        return
    for name, layer in network.named_modules():
        if isinstance(layer, _CAST_LAYERS) and not f"{name}.".startswith(_FULL_PRECISION):
            layer.to(torch.bfloat16)
