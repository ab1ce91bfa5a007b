"""Feature extractors: torch-fidelity's, a random convolution network that needs no downloaded weights, or the user's own class.

Promises: weights are loaded only if their sha256 is the configured one, and never by an unrestricted unpickler; the random-convolution
extractor is the same function on every machine (its weights come from counter-based random numbers) and is never called Inception or FID.
"""

import importlib
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

from components.errors import BadInput, DataRefused, whole_text
from components.evaluate.config import EvaluationConfig
from components.evaluate.extractors import RANDOM_CONV, RANDOM_CONV_VERSION, VGG16, WEIGHTS_HINT, fetch_weights
from components.evaluate.metrics.names import RANDOM_CONV as RANDOM_CONV_CHOICE
from components.evaluate.metrics.table import Need, is_needed
from components.storage import ObjectStore
from model import rng

LOGITS = "logits_unbiased"
_CHANNELS = (3, 24, 48, 96)
_SIDE_PX = 32


class RandomConvExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """Three random 3x3 convolutions with ReLU and pooling; features are each map's mean and deviation, and a coarse 4x4 copy of the image.

    Distances on such features rank samplers of simple images well (they see colour, layout, edges and texture), but do not
    predict how people judge faces.
    """

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.kernels = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(pairwise(_CHANNELS)):
            weights = rng.normal(RANDOM_CONV_VERSION, rng.Stream.FEATURES, layer, torch.arange(outputs), (inputs, 3, 3))
            self.kernels.append(nn.Parameter(weights * math.sqrt(2 / (9 * inputs)), requires_grad=False))

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
        BadInput: if there is no such extractor or its weights are missing. DataRefused: if their sha256 is not the configured one.
    """
    name = _register(config.extractor)
    layers = [FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")]
    if is_needed(Need.LOGITS, config):
        layers.append(LOGITS)
    path = None if config.weights is None else fetch_weights(config.weights, config.weights_sha256, store, folder, setting="weights")
    return _create(name, layers, path, config.weights, device)


def build_vgg(config: EvaluationConfig, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module | None:
    """Return VGG16 for precision and recall, or None if they use the extractor of `build_extractor`."""
    if config.vgg_weights is None:
        return None
    path = fetch_weights(config.vgg_weights, config.vgg_weights_sha256, store, folder, setting="vgg_weights")
    layer = FEATURE_EXTRACTORS_REGISTRY[VGG16].get_default_feature_layer_for_metric("prc")
    return _create(VGG16, [layer], path, config.vgg_weights, device)


def _register(chosen: str) -> str:
    """Return the name under which torch-fidelity knows the chosen extractor."""
    if chosen == RANDOM_CONV_CHOICE:
        if RANDOM_CONV not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(RANDOM_CONV, RandomConvExtractor)
        return RANDOM_CONV
    if ":" in chosen and chosen not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(chosen, _import_class(chosen))
    if chosen not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted({RANDOM_CONV_CHOICE, *FEATURE_EXTRACTORS_REGISTRY} - {RANDOM_CONV}))
        raise BadInput(f"evaluation.extractor {chosen!r} is not known", hint=f"known: {known}; or write 'package.module:Class'")
    return chosen


def _import_class(chosen: str) -> type[FeatureExtractorBase]:
    module, _, name = chosen.partition(":")
    try:
        extractor = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"evaluation.extractor {chosen!r} cannot be imported: {error}", hint="install its package beside this one"
        ) from error
    if not (isinstance(extractor, type) and issubclass(extractor, FeatureExtractorBase)):
        raise BadInput(f"evaluation.extractor {chosen!r} is not a torch_fidelity FeatureExtractorBase")
    return extractor


def _create(name: str, layers: list[str], path: Path | None, shown: str | None, device: torch.device) -> nn.Module:
    # torch-fidelity loads with weights_only=False; this makes torch refuse anything but plain tensors all the same.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    where = {} if path is None else {"feature_extractor_weights_path": str(path)}
    try:
        extractor = create_feature_extractor(name, layers, cuda=False, verbose=False, **where)
        return extractor.to(device=device, memory_format=torch.channels_last)  # a fifth faster on CPUs
    except Exception as error:
        what = f"weights {shown} of extractor {name!r}" if shown else f"extractor {name!r}"
        reason = whole_text(error)
        raise DataRefused(f"the {what} cannot be loaded: {reason}", hint=WEIGHTS_HINT) from error
