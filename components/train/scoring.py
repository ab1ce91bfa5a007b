"""Scores of samples during training: their distance to training images on the features that the evaluation uses.

Promises: the extractor is built and the features of the references are computed before the first step, so that weights that are missing or
refused end a training at once and not at its first milestone. A score is named after its metric, the extractor and the number of images,
below `score/`, so that it is not taken for a metric of the evaluation: it compares with as many references only.
"""

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from components.features.build import build_extractor
from components.features.config import FeaturesConfig
from components.features.extractors import fetch_weights
from components.features.frechet import frechet_distance
from components.features.full_convolutions import full_convolutions
from components.features.moments import Statistics, statistics
from components.features.names import names_for
from components.features.sliced_distance import sliced_distance
from components.runtime.context import StepContext
from components.system.locks import lock
from components.system.work_folders import WorkFolder
from model.config import TrainingConfig
from model.dataset import Pack
from model.distributed import World, gather_rows
from model.milestone_scores import shared_passes

_EXTRACT_IMAGES = 64


def open_extractor(features: FeaturesConfig, context: StepContext, device: torch.device) -> nn.Module:
    """Return the extractor that `features` names; its weights are downloaded once per machine.

    Raises:
        BadInput: if there is no such extractor or its weights are missing. DataRefused: if their sha256 is not the configured one.
    """
    folder, sha256 = context.scratch(WorkFolder.WEIGHTS), features.weights_sha256
    if sha256 is not None:
        with lock(folder / f"{sha256}.lock"):
            stored = context.layout.metric_weights(sha256)
            fetch_weights(features.weights, sha256, context.store, folder, setting="weights", stored=stored)
    return build_extractor(features, context.store, folder, device)


class FeatureScorer:
    """Scores the first `training.score_images` samples against as many training images, the first in key order.

    The extractor is on the device only while samples are drawn.
    """

    def __init__(self, extractor: nn.Module, extractor_name: str, training: TrainingConfig, references: Float[Tensor, "n d"]) -> None:
        self._extractor = extractor
        self._references = references
        self._metrics = training.score_metrics
        self._names = names_for(extractor_name, training.score_images)
        self._moments: Statistics | None = None

    @classmethod
    def open(
        cls, extractor: nn.Module, extractor_name: str, training: TrainingConfig, pack: Pack, *, world: World, device: torch.device
    ) -> Self:
        """Compute the features of the references, of which `pack` has enough, divided over the ranks. A collective."""
        count, rows = training.score_images, list[Float[Tensor, "b d"]]()
        assert count <= len(pack), "the train step checks it"
        for indices in shared_passes(count, _EXTRACT_IMAGES, world):
            images = torch.from_numpy(np.ascontiguousarray(pack.images[indices.numpy()])).permute(0, 3, 1, 2)
            rows.append(gather_rows(take_features(extractor, images.to(device)), world))
        extractor.to("cpu")
        return cls(extractor, extractor_name, training, torch.cat(rows)[:count])

    @property
    def num_images(self) -> int:
        return self._names.num_images

    def features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Return the features of images, on their device."""
        return torch.cat([take_features(self._extractor, part) for part in images.split(_EXTRACT_IMAGES)])

    def scores(self, features: Float[Tensor, "n d"]) -> Mapping[str, float]:
        """Return the configured distances of `features` to those of the references."""
        measures: dict[str, tuple[str, Callable[[Tensor], float]]] = {
            "mind": (f"mind{self._names.mark}", lambda rows: sliced_distance(rows, self._references)),
            "frechet": (self._names.frechet, self._frechet),
        }
        self._extractor.to("cpu")
        chosen = [measures[metric] for metric in self._metrics]
        return {f"score/{name}_{self._names.count}": round(measure(features), 8) for name, measure in chosen}

    def _frechet(self, rows: Float[Tensor, "n d"]) -> float:
        if self._moments is None:
            self._moments = statistics(self._references)
        return frechet_distance(statistics(rows), self._moments)


def take_features(extractor: nn.Module, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Return the features of images, as the evaluate step takes them."""
    with torch.inference_mode(), full_convolutions():
        extractor.to(images.device)
        features: Tensor = extractor(images)[0].float()
    return features
