"""Feature extractors of torch-fidelity: its own, and the user's classes.

Promises: weights are loaded only by an unpickler that takes nothing but tensors. Which extractor an evaluation uses is in `features.py`.
"""

import importlib
import os
from pathlib import Path

import torch
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from components.errors import BadInput, DataRefused, whole_text
from components.features.clip import is_clip, load_clip
from components.features.extractors import WEIGHTS_HINT
from components.features.names import RANDOM_CONV as RANDOM_CONV_CHOICE


def feature_layer(name: str, metric: str) -> str:
    """Return the layer whose features torch-fidelity takes for a metric."""
    return str(FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric(metric))


def register_extractor(chosen: str) -> str:
    """Return the name under which torch-fidelity knows the chosen extractor.

    Raises:
        BadInput: if there is no such extractor.
    """
    if ":" in chosen and chosen not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(chosen, _import_class(chosen))
    if chosen not in FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted({RANDOM_CONV_CHOICE, *FEATURE_EXTRACTORS_REGISTRY}))
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


def create_extractor(name: str, layers: list[str], path: Path | None, shown: str | None, device: torch.device) -> nn.Module:
    """Return an extractor on `device`, with the weights at `path`, which errors call `shown`.

    Raises:
        DataRefused: if it cannot be loaded.
    """
    # torch-fidelity loads with weights_only=False; this makes torch refuse anything but plain tensors all the same.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    where = {} if path is None else {"feature_extractor_weights_path": str(path)}
    try:
        if path is not None and is_clip(name):
            extractor = load_clip(name, layers, path)
        else:
            extractor = create_feature_extractor(name, layers, cuda=False, verbose=False, **where)
        return extractor.to(device=device, memory_format=torch.channels_last)  # a fifth faster on CPUs
    except Exception as error:
        what = f"weights {shown} of extractor {name!r}" if shown else f"extractor {name!r}"
        reason = whole_text(error)
        raise DataRefused(f"the {what} cannot be loaded: {reason}", hint=WEIGHTS_HINT) from error
