"""The feature extractor of an evaluation: torch-fidelity's, the user's own class, DINOv2 or a random convolution network.

Promises: weights are loaded only if their sha256 is the configured one. torch-fidelity is imported only if one of its extractors is used.
"""

from pathlib import Path

import torch
from torch import nn

from components.evaluate.config import EvaluationConfig
from components.evaluate.dinov2 import load_dinov2
from components.evaluate.extractors import VGG16, fetch_weights
from components.evaluate.metrics.names import DINOV2, RANDOM_CONV
from components.evaluate.metrics.table import Need, is_needed
from components.evaluate.random_conv import RandomConvExtractor
from components.storage import ObjectStore

LOGITS = "logits_unbiased"


def build_extractor(config: EvaluationConfig, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module:
    """Return the extractor that `config` names, on `device`; call it with uint8 images, the features are the first of the returned tuple.

    Raises:
        BadInput: if there is no such extractor or its weights are missing. DataRefused: if their sha256 is not the configured one.
    """
    if config.extractor == RANDOM_CONV:
        return RandomConvExtractor().to(device).to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    if config.extractor == DINOV2:
        assert config.weights is not None, "the configuration was validated"
        weights = fetch_weights(config.weights, config.weights_sha256, store, folder, setting="weights")
        return load_dinov2(weights, config.weights, device)
    from components.evaluate.fidelity_extractors import create_extractor, feature_layer, register_extractor  # noqa: PLC0415 - slow to import

    name = register_extractor(config.extractor)
    layers = [feature_layer(name, "fid")]
    if is_needed(Need.LOGITS, config):
        layers.append(LOGITS)
    sha256 = config.weights_sha256
    path = None if sha256 is None else fetch_weights(config.weights, sha256, store, folder, setting="weights")
    return create_extractor(name, layers, path, config.weights or sha256, device)


def build_vgg(config: EvaluationConfig, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module | None:
    """Return VGG16 for precision and recall, or None if they use the extractor of `build_extractor`."""
    if config.vgg_weights_sha256 is None:
        return None
    from components.evaluate.fidelity_extractors import create_extractor, feature_layer  # noqa: PLC0415 - slow to import

    path = fetch_weights(config.vgg_weights, config.vgg_weights_sha256, store, folder, setting="vgg_weights")
    return create_extractor(VGG16, [feature_layer(VGG16, "prc")], path, config.vgg_weights or config.vgg_weights_sha256, device)
