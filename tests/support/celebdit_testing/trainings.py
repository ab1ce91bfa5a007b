"""The train step as its component calls it, its one rank in this process: starting torch anew each time would cost minutes."""

import threading
from pathlib import Path

import pytest

from components.features.config import FeaturesConfig
from components.ingest.config import DataConfig
from components.ingest.ingest import run as ingest
from components.manifests import CheckpointManifest, DatasetManifest
from components.resources import ResourcesConfig
from components.runtime.context import StepContext
from components.runtime.rank import Rank
from components.train.train import run as train
from components.train.worker import body
from model.config import Recipe
from model.distributed import World


def small_faces(context: StepContext) -> DatasetManifest:
    """Twelve drawn faces."""
    return ingest(DataConfig(name="faces", source="synthetic://?count=12&seed=0&size=16", image_px=16), context, workers=1)


def run_train(
    recipe: Recipe,
    dataset: DatasetManifest,
    context: StepContext,
    *,
    launches: list[int] | None = None,
    features: FeaturesConfig | None = None,
) -> CheckpointManifest:
    """Run the step; the number of launches of its rank is appended to `launches`."""

    def here(module: str, spec_path: Path, **_: object) -> None:
        assert module == "components.train.worker"
        if launches is not None:
            launches.append(1)
        body(spec_path, Rank(context=context, world=World(), stop_requested=threading.Event()))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TIMEOUT", "5"), ("MAX_RETRIES", "0")):  # the step lowers them for its process
            patch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
        patch.setattr("components.train.train.launch", here)
        return train(recipe, dataset, ResourcesConfig(device="cpu"), context, features=features)
