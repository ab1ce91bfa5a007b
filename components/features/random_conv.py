"""The feature extractor that needs no downloaded weights: a random convolution network.

Promises: it is the same function on every machine (its weights come from counter-based random numbers), and is never called Inception or
FID. Imports no torch-fidelity, which takes longer to import than all else that a rank of a small evaluation does.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from components.features.extractors import RANDOM_CONV_VERSION
from model import rng

_CHANNELS = (3, 24, 48, 96)
_SIDE_PX = 32


class RandomConvExtractor(nn.Module):
    """Three random 3x3 convolutions with ReLU and pooling; features are each map's mean and deviation, and a coarse 4x4 copy of the image.

    Distances on such features rank samplers of simple images well (they see colour, layout, edges and texture), but do not
    predict how people judge faces.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(_CHANNELS)):
            weights = rng.normal(RANDOM_CONV_VERSION, rng.Stream.FEATURES, layer, torch.arange(outputs), (inputs, 3, 3))
            self.kernels.append(nn.Parameter(weights * math.sqrt(2 / (9 * inputs)), requires_grad=False))

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"]]:
        x = F.adaptive_avg_pool2d(images.float() / 127.5 - 1, min(_SIDE_PX, images.shape[-1]))
        features = [F.adaptive_avg_pool2d(x, 4).flatten(1)]
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, padding=1))
            features += [x.mean((2, 3)), x.std((2, 3))]
            x = F.avg_pool2d(x, 2)
        return (torch.cat(features, dim=1),)
