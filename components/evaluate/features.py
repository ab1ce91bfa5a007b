"""From uint8 images to feature vectors: torch-fidelity's extractors, and one of our own that needs no downloaded weights.

Promises: weights are loaded only if their sha256 is the configured one, and never by an unrestricted unpickler; the random-convolution
extractor is the same function on every machine (its weights come from counter-based random numbers) and is never called Inception or FID.
"""

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from components.errors import BadInput, DataRefused
from components.evaluate.config import EvaluationConfig
from components.storage import ObjectStore, StoreUri, file_sha256
from model import rng

RANDOM_CONV = "celebdit-random-conv"
RANDOM_CONV_VERSION = 1
_CHANNELS = (3, 24, 48, 96)
_SIDE_PX = 32
_LAYERS = {"random-conv": "pooled", "inception-v3-compat": "2048"}


class RandomConvExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Three random 3x3 convolutions with ReLU and pooling; features are each map's mean and deviation, and a coarse 4x4 copy of the image.

    Distances on such features rank samplers of simple images well (they see colour, layout, edges and texture), but say nothing about
    faces as people see them.
    """

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.kernels = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(_CHANNELS)):
            drawn = rng.normal(RANDOM_CONV_VERSION, rng.Stream.FEATURES, layer, torch.arange(outputs), (inputs, 3, 3))
            self.kernels.append(nn.Parameter(drawn * math.sqrt(2 / (9 * inputs)), requires_grad=False))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, _SIDE_PX, _SIDE_PX, dtype=torch.uint8)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b d"]]:
        x = F.adaptive_avg_pool2d(images.float() / 127.5 - 1, min(_SIDE_PX, images.shape[-1]))
        features = [F.adaptive_avg_pool2d(x, 4).flatten(1)]
        for kernel in self.kernels:
            x = F.relu(F.conv2d(x, kernel, padding=1))
            features += [x.mean((2, 3)), x.std((2, 3))]
            x = F.avg_pool2d(x, 2)
        return (torch.cat(features, dim=1),)


def build_extractor(config: EvaluationConfig, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module:
    """Return the extractor that `config` names, on `device`; call it with uint8 images, the features are the first of the returned tuple.

    Raises:
        BadInput: if the weights are missing. DataRefused: if they are not those whose sha256 is configured.
    """
    if RANDOM_CONV not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(RANDOM_CONV, RandomConvExtractor)
    layer = [_LAYERS[config.extractor]]
    if config.extractor == "random-conv":
        return create_feature_extractor(RANDOM_CONV, layer, cuda=False, verbose=False).to(device)
    path = fetch_weights(config, store, folder)
    # torch-fidelity loads with weights_only=False; this makes torch refuse anything but plain tensors all the same.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        extractor = create_feature_extractor(config.extractor, layer, cuda=False, verbose=False, feature_extractor_weights_path=str(path))
    except Exception as error:
        raise DataRefused(f"evaluation.weights {config.weights} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    return extractor.to(device)


def fetch_weights(config: EvaluationConfig, store: ObjectStore, folder: Path) -> Path:
    """Return a local path of the extractor's weights, verified against `weights_sha256`."""
    assert config.weights is not None, "the configuration was validated"
    assert config.weights_sha256 is not None, "the configuration was validated"
    if config.weights.startswith("s3://"):
        path = folder / f"{config.weights_sha256}.pth"
        if not path.exists():
            store.get_file(StoreUri.parse(config.weights), path, sha256=config.weights_sha256)
    else:
        path = Path(config.weights)
        if not path.is_file():
            raise BadInput(f"evaluation.weights {path} does not exist")
    if (found := file_sha256(path)) != config.weights_sha256:
        raise DataRefused(f"evaluation.weights {config.weights} has sha256 {found}, evaluation.weights_sha256 is {config.weights_sha256}")
    return path


def identity_of(config: EvaluationConfig) -> str:
    """Return what the features of a protocol are, down to the weights."""
    if config.extractor == "random-conv":
        return f"{RANDOM_CONV}-{RANDOM_CONV_VERSION}"
    return f"{config.extractor}-{config.weights_sha256}"
