"""The champion as something that can be measured: its weights come from the registry, where they stay when its checkpoints are long gone.

Promises: what is measured is what is served, the average of the weights that was registered included. Whether it wins is the gate's
business.
"""

from dataclasses import dataclass
from pathlib import Path

from components.errors import CelebditError, TemporaryFailure
from components.manifests import CheckpointReference
from components.registry.client import CHAMPION, Registry
from components.registry.tags import VersionTags
from model.config import ModelSpec


class NotMeasurable(Exception):
    """The champion cannot be measured under this protocol; the text says why."""


@dataclass(frozen=True)
class Champion:
    """The registered version that `champion` stands on."""

    version: str
    checkpoint: CheckpointReference
    model: ModelSpec
    ema: str


def champion_version(registry: Registry) -> str | None:
    """Return the number of the version that `champion` stands on, or None."""
    return registry.aliases().get(CHAMPION)


def open_champion(registry: Registry, version: str, folder: Path) -> tuple[Champion, Path]:
    """Return the champion and the file of its weights, fetched below `folder` unless they are there.

    Raises:
        NotMeasurable: if the version was not made by this project's register step, or its files cannot be had.
    """
    tags = VersionTags.from_mlflow(registry.version(version).tags)
    if tags.run_key is None or tags.checkpoint_uri is None or tags.checkpoint_digest is None:
        raise NotMeasurable("it has no tags of a checkpoint, so this pipeline did not register it")
    if tags.checkpoint_step is None or tags.dataset_digest is None:
        raise NotMeasurable("it has no tags of a training, so it was imported")
    try:
        files = registry.files_of(version, folder)
        checkpoint = CheckpointReference(
            run_key=tags.run_key,
            uri=tags.checkpoint_uri,
            digest=tags.checkpoint_digest,
            step=tags.checkpoint_step,
            dataset_digest=tags.dataset_digest,
        )
        return Champion(version, checkpoint, files.description.model_spec, files.description.sampling.ema), files.weights
    except TemporaryFailure:
        raise
    except (KeyError, TypeError, ValueError, OSError, CelebditError) as error:
        raise NotMeasurable(f"{type(error).__name__}: {error}") from error
