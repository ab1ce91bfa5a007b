"""From uint8 images to feature vectors: torch-fidelity's extractors, one of our own that needs no downloaded weights, or one of yours.

Promises: weights are loaded only if their sha256 is the configured one, and never by an unrestricted unpickler; the random-convolution
extractor is the same function on every machine (its weights come from counter-based random numbers) and is never called Inception or FID;
an extractor's identity changes with its weights and, if it is yours, with its source.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
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
from components.evaluate.config import INCEPTION, EvaluationConfig
from components.evaluate.config import RANDOM_CONV as RANDOM_CONV_CHOICE
from components.storage import ObjectStore, StoreUri, file_sha256
from model import rng

Extract = Callable[[UInt8[Tensor, "b 3 h w"]], tuple[Tensor, ...]]
"""Return the features of images; the first element is what distances are measured on, a second one Inception's class scores."""

RANDOM_CONV = "celebdit-random-conv"
RANDOM_CONV_VERSION = 1
VGG16 = "vgg16"
LOGITS = "logits_unbiased"
WHERE_WEIGHTS_ARE = (
    "the file of its weights is in the torch-fidelity project's releases (Inception: weights-inception-2015-12-05-6726825d.pth) or "
    "torchvision's (VGG16: vgg16-397923af.pth); put it at a path or an s3:// location"
)
_CHANNELS = (3, 24, 48, 96)
_SIDE_PX = 32


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
        BadInput: if there is no such extractor or its weights are missing. DataRefused: if they are not those whose sha256 is configured.
    """
    name = _registered(config.extractor)
    layers = [FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")]
    if "inception_score" in config.metric_names:
        layers.append(LOGITS)
    path = None if config.weights is None else fetch_weights(config.weights, config.weights_sha256, store, folder, setting="weights")
    return _created(name, layers, path, config.weights, device)


def build_vgg(config: EvaluationConfig, store: ObjectStore, folder: Path, device: torch.device) -> nn.Module | None:
    """Return the extractor that precision and recall are to be measured with, or None if that is the one of `build_extractor`."""
    if config.vgg_weights is None:
        return None
    path = fetch_weights(config.vgg_weights, config.vgg_weights_sha256, store, folder, setting="vgg_weights")
    layer = FEATURE_EXTRACTORS_REGISTRY[VGG16].get_default_feature_layer_for_metric("prc")
    return _created(VGG16, [layer], path, config.vgg_weights, device)


def _registered(chosen: str) -> str:
    """Return the name under which torch-fidelity knows the chosen extractor."""
    if chosen == RANDOM_CONV_CHOICE:
        if RANDOM_CONV not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(RANDOM_CONV, RandomConvExtractor)
        return RANDOM_CONV
    if ":" in chosen and chosen not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(chosen, _own_class(chosen))
    if chosen not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted({RANDOM_CONV_CHOICE, *FEATURE_EXTRACTORS_REGISTRY} - {RANDOM_CONV}))
        raise BadInput(f"evaluation.extractor {chosen!r} is not known", hint=f"known: {known}; or write 'package.module:Class'")
    return chosen


def _own_class(chosen: str) -> type[FeatureExtractorBase]:
    module, _, name = chosen.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"evaluation.extractor {chosen!r} cannot be imported: {error}", hint="install its package beside this one"
        ) from error
    if not (isinstance(found, type) and issubclass(found, FeatureExtractorBase)):
        raise BadInput(f"evaluation.extractor {chosen!r} is not a torch_fidelity FeatureExtractorBase")
    return found


def _created(name: str, layers: list[str], path: Path | None, shown: str | None, device: torch.device) -> nn.Module:
    # torch-fidelity loads with weights_only=False; this makes torch refuse anything but plain tensors all the same.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    where = {} if path is None else {"feature_extractor_weights_path": str(path)}
    try:
        extractor = create_feature_extractor(name, layers, cuda=False, verbose=False, **where)
        return extractor.to(device=device, memory_format=torch.channels_last)  # a fifth faster on CPUs
    except Exception as error:
        what = f"weights {shown} of extractor {name!r}" if shown else f"extractor {name!r}"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataRefused(f"the {what} cannot be loaded: {reason}", hint=WHERE_WEIGHTS_ARE) from error


def fetch_weights(location: str, sha256: str | None, store: ObjectStore, folder: Path, *, setting: str) -> Path:
    """Return a local path of weights, verified against `sha256`; `setting` is their name in the configuration."""
    assert sha256 is not None, "the configuration was validated"
    if location.startswith("s3://"):
        path = folder / f"{sha256}.pth"
        if not path.exists():
            store.get_file(StoreUri.parse(location), path, sha256=sha256)
    else:
        path = Path(location)
        if not path.is_file():
            raise BadInput(f"evaluation.{setting} {path} does not exist", hint=WHERE_WEIGHTS_ARE)
    if (found := file_sha256(path)) != sha256:
        raise DataRefused(
            f"evaluation.{setting} {location} has sha256 {found}, evaluation.{setting}_sha256 is {sha256}", hint=WHERE_WEIGHTS_ARE
        )
    return path


def identity_of(config: EvaluationConfig) -> str:
    """Return what the features of a protocol are, down to the weights or the source; usable in an object's key."""
    if config.extractor == RANDOM_CONV_CHOICE:
        return f"{RANDOM_CONV}-{RANDOM_CONV_VERSION}"
    parts = [config.extractor.replace(":", ".")]
    if ":" in config.extractor:
        parts.append(_source_sha256(config.extractor)[:16])
    if config.weights_sha256 is not None:
        parts.append(config.weights_sha256)
    return "-".join(parts)


def vgg_identity_of(config: EvaluationConfig) -> str | None:
    """Return the identity of the features for precision and recall, if they have their own."""
    return None if config.vgg_weights_sha256 is None else f"{VGG16}-{config.vgg_weights_sha256}"


def _source_sha256(chosen: str) -> str:
    module = chosen.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise BadInput(
            f"evaluation.extractor {chosen!r} cannot be imported: {error}", hint="install its package beside this one"
        ) from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise BadInput(f"evaluation.extractor {chosen!r}: there is no module {module!r}", hint="install its package beside this one")
    return file_sha256(Path(found.origin))


def stem_of(extractor: str) -> tuple[str, str, str]:
    """Return how Frechet and kernel distance are called on the features of `extractor`, and the mark of the other numbers."""
    if extractor == INCEPTION:
        return "fid", "kid", ""
    mark = {RANDOM_CONV_CHOICE: "randconv"}.get(extractor) or "".join(
        c if c.isalnum() else "_" for c in extractor.rpartition(":")[2].lower()
    )
    return f"fd_{mark}", f"kd_{mark}", f"_{mark}"
