"""The champion's weights, from the model registry, which keeps them when the run's checkpoints are gone.

Promises: the weights that are measured are those that are served, the registered EMA included.
"""

from dataclasses import dataclass
from pathlib import Path

from components.errors import CelebditError, TemporaryFailure
from components.manifests import CheckpointReference
from components.registry.client import ModelVersion, Registry
from components.registry.tags import VersionTags
from components.system.locks import lock
from model.config import ModelSpec, SamplingConfig


class NotMeasurable(Exception):
    """The champion cannot be measured under this protocol; the message says why."""


@dataclass(frozen=True)
class Champion:
    """The registered version with the alias `champion`."""

    version: str
    checkpoint: CheckpointReference
    model: ModelSpec
    sampling: SamplingConfig
    """How it draws images by itself."""
    is_student: bool

    def sampling_beside(self, challenger: SamplingConfig, *, challenger_is_student: bool) -> SamplingConfig:
        """Return how its images are drawn to be compared with those of `challenger`: in the same way, where neither is a student.

        A student of few steps is trained for its own, in which another model draws badly, and draws badly in those of others: then each
        model is drawn as it is served, with the same seed.
        """
        if self.is_student or challenger_is_student:
            return self.sampling.model_copy(update={"seed": challenger.seed})
        return challenger.model_copy(update={"ema": self.sampling.ema})


def open_champion(registry: Registry, version: ModelVersion, folder: Path, *, verify_key: str | None = None) -> tuple[Champion, Path]:
    """Return the champion `version` and the file of its weights, fetched into `folder` unless they are there already.

    With a file of a public key in `verify_key`, its signature is verified too.

    Raises:
        NotMeasurable: if the version was not registered by this project, or its files are missing, corrupt or not signed by the key.
    """
    tags, number = VersionTags.from_mlflow(version.tags), str(version.version)
    if tags.run_key is None or tags.checkpoint_uri is None or tags.checkpoint_digest is None:
        raise NotMeasurable("it has no tags of a checkpoint, so this pipeline did not register it")
    if tags.checkpoint_step is None or tags.dataset_digest is None:
        raise NotMeasurable("it has no tags of a training, so it was imported")
    try:
        with lock(folder / f"{registry.name}-{number}.lock"):  # of two processes one downloads the files
            files = registry.files_of(version, folder, verify_key=verify_key)
        checkpoint = CheckpointReference(
            run_key=tags.run_key,
            uri=tags.checkpoint_uri,
            digest=tags.checkpoint_digest,
            step=tags.checkpoint_step,
            dataset_digest=tags.dataset_digest,
        )
        described = files.description
        return Champion(number, checkpoint, described.model_spec, described.sampling, described.is_student), files.weights
    except TemporaryFailure:
        raise
    except (KeyError, TypeError, ValueError, OSError, CelebditError) as error:
        raise NotMeasurable(f"{type(error).__name__}: {error}") from error
