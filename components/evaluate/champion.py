"""The champion's weights, from the model registry, which keeps them when the run's checkpoints are gone.

Promises: the weights that are measured are those that are served, the registered EMA included.
"""

from dataclasses import dataclass
from pathlib import Path

from components.errors import CelebditError, TemporaryFailure
from components.manifests import CheckpointReference
from components.registry.client import CHAMPION, Registry
from model.config import ModelSpec


class NotMeasurable(Exception):
    """The champion cannot be measured under this protocol; the message says why."""


@dataclass(frozen=True)
class Champion:
    """The registered version with the alias `champion`."""

    version: str
    checkpoint: CheckpointReference
    model: ModelSpec
    ema: str


def champion_version(registry: Registry) -> str | None:
    """Return the number of the version with the alias `champion`, or None."""
    return registry.aliases().get(CHAMPION)


def open_champion(registry: Registry, version: str, folder: Path) -> tuple[Champion, Path]:
    """Return the champion and the file of its weights, fetched into `folder` unless they are there already.

    Raises:
        NotMeasurable: if the version was not registered by this project, or its files are missing or corrupt.
    """
    tags = registry.version(version).tags
    try:
        files = registry.files_of(version, folder)
        checkpoint = CheckpointReference(
            run_key=tags["run_key"],
            uri=tags["checkpoint.uri"],
            digest=tags["checkpoint.digest"],
            step=int(tags["checkpoint.step"]),
            dataset_digest=tags["dataset.digest"],
        )
        return Champion(version, checkpoint, files.description.model_spec, files.description.sampling.ema), files.weights
    except TemporaryFailure:
        raise
    except (KeyError, TypeError, ValueError, OSError, CelebditError) as error:
        raise NotMeasurable(f"{type(error).__name__}: {error}") from error
