"""Build the extractor of features: torch-fidelity's, the user's own class, DINOv2 or a random convolution network.

Promises: weights are loaded only if their sha256 is the configured one. torch-fidelity is imported only if one of its extractors is used.
"""

from pathlib import Path

import torch
from torch import nn

from components.features.config import ExtractorChoice
from components.features.dinov2 import load_dinov2
from components.features.extractors import VGG16, fetch_weights
from components.features.names import DINOV2, RANDOM_CONV
from components.features.random_conv import RandomConvExtractor
from components.storage import ObjectStore

LOGITS = "logits_unbiased"


def build_extractor(
    config: ExtractorChoice, store: ObjectStore, folder: Path, device: torch.device, *, with_logits: bool = False
) -> nn.Module:
    """Return the extractor that `config` names, on `device`; call it with uint8 images, the features are the first of the returned tuple.

    `with_logits` adds Inception's class scores to the tuple.

    Raises:
        BadInput: if there is no such extractor or its weights are missing. DataRefused: if their sha256 is not the configured one.
    """
    if config.extractor == RANDOM_CONV:
        return RandomConvExtractor().to(device).to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    if config.extractor == DINOV2:
        assert config.weights is not None, "the configuration was validated"
        weights = fetch_weights(config.weights, config.weights_sha256, store, folder, setting="weights")
        return load_dinov2(weights, config.weights, device)
    from components.features.fidelity_extractors import create_extractor, feature_layer, register_extractor  # noqa: PLC0415 - slow to import

    name = register_extractor(config.extractor)
    layers = [feature_layer(name, "fid")]
    if with_logits:
        layers.append(LOGITS)
    sha256 = config.weights_sha256
    path = None if sha256 is None else fetch_weights(config.weights, sha256, store, folder, setting="weights")
    return create_extractor(name, layers, path, config.weights or sha256, device)


def build_vgg(location: str | None, sha256: str | None, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module | None:
    """Return VGG16 for precision and recall, or None if they use the extractor of `build_extractor`."""
    if sha256 is None:
        return None
    from components.features.fidelity_extractors import create_extractor, feature_layer  # noqa: PLC0415 - slow to import

    path = fetch_weights(location, sha256, store, folder, setting="vgg_weights")
    return create_extractor(VGG16, [feature_layer(VGG16, "prc")], path, location or sha256, device)
