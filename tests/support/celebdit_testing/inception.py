"""Weights with the names and shapes of Inception's and VGG16's, filled at random: the real code path where the real files cannot be had."""

from pathlib import Path

import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


def write_inception(path: Path) -> Path:
    """Write such a state dict and return its path."""
    empty = path.with_name("empty.pth")
    torch.save({}, empty)
    torch.manual_seed(0)
    network = _Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(empty))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def write_vgg16(path: Path) -> Path:
    """Write a state dict of torchvision's VGG16 and return its path."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.vgg16().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(4096, generator=generator)  # repeated: half a gigabyte of random numbers would take seconds
    weights = {}
    for name, shape in shapes.items():
        values = few.repeat(-(-shape.numel() // len(few)))[: shape.numel()].reshape(shape)
        weights[name] = values * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else torch.zeros(shape)
    torch.save(weights, path)
    return path
