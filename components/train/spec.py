"""What a training is: the identity of a run, and the file by which the step tells its workers what to do.

Promises: the run key is a function of the data, the recipe and the version of the training maths; how long, how often and on what hardware
does not enter it.
"""

from typing import Literal

from components.manifests import DatasetManifest, Manifest
from components.resources import ResourcesConfig
from components.storage import ObjectStore, StoreUri
from model.canonical import digest_of
from model.config import TRAINING_VERSION, DiffusionConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig
from model.recipe import Recipe

SPEC_FILE = "spec.json"
_KEY_CHARACTERS = 16


class TrainSpec(Manifest):
    """Everything that a worker needs besides its environment."""

    kind: Literal["train-spec"] = "train-spec"
    run_key: str
    attempt: str
    dataset: DatasetManifest
    network: NetworkConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig
    resources: ResourcesConfig

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.network, self.diffusion, self.optimizer, self.training, self.sampling)

    @property
    def identity(self) -> dict[str, object]:
        """What makes this run this run."""
        return identity(self.dataset.digest, self.network, self.diffusion, self.optimizer, self.training)


def store_spec(spec: TrainSpec, store: ObjectStore, root: StoreUri) -> StoreUri:
    """Store what an attempt was asked to do, for its nodes and for `celebdit sync`, and return where; again is harmless."""
    uri = root / "runs" / spec.run_key / "attempts" / spec.attempt / SPEC_FILE
    store.put_bytes(uri, spec.model_dump_json().encode())
    return uri


def identity(
    dataset_digest: str, network: NetworkConfig, diffusion: DiffusionConfig, optimizer: OptimizerConfig, training: TrainingConfig
) -> dict[str, object]:
    """Return what makes a run this run, as JSON; it is stored with every checkpoint and compared on resume."""
    return {
        "dataset_digest": dataset_digest,
        "network": network.model_dump(mode="json"),
        "diffusion": diffusion.model_dump(mode="json"),
        "optimizer": optimizer.model_dump(mode="json"),
        "training": training.identity(),
        "training_version": TRAINING_VERSION,
    }


def run_key(identity: dict[str, object]) -> str:
    """Return the short digest that names a run in object storage and MLflow."""
    return digest_of(identity)[:_KEY_CHARACTERS]


def differences(saved: object, wanted: object, path: str = "") -> list[str]:
    """Return one line per field that differs, `section.field: saved -> wanted`."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for key in sorted(set(saved) | set(wanted)):
            lines += differences(saved.get(key, "absent"), wanted.get(key, "absent"), f"{path}.{key}" if path else str(key))
        return lines
    return [] if saved == wanted else [f"{path}: {saved} -> {wanted}"]
