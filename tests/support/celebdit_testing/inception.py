"""Weights with the names and shapes of Inception's, filled at random: the real code path where the real file cannot be had."""

from pathlib import Path

import torch
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
