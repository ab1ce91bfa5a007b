"""Files of a registered version on this machine, verified before they are used. Imports no MLflow; `client.py` downloads them."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from components.errors import DataRefused
from components.runtime.context import describe
from components.storage import file_sha256
from model.description import VersionDescription

WEIGHTS_FILE, DESCRIPTION_FILE = "weights.safetensors", "description.json"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a version, downloaded and verified."""

    folder: Path
    weights: Path
    description: VersionDescription


def are_complete(folder: Path) -> bool:
    """Return whether the weights and the description of a version are in `folder`."""
    return all((folder / "artifacts" / name).exists() for name in (WEIGHTS_FILE, DESCRIPTION_FILE))


def read_version_files(folder: Path, version: str) -> ModelFiles:
    """Return the files in `folder`; `version` names the version in errors. Weights with another digest are deleted.

    Raises:
        DataRefused: if it is not a model of this project, or its weights are not those that were registered.
    """
    if not are_complete(folder):
        raise DataRefused(f"{version} is not a model of celebdit: it has no {WEIGHTS_FILE}")
    weights = folder / "artifacts" / WEIGHTS_FILE
    try:
        description = VersionDescription.read(folder / "artifacts" / DESCRIPTION_FILE)
    except ValidationError as error:
        raise DataRefused(
            f"{version} is not one that this version of celebdit can read: {describe(error, section=DESCRIPTION_FILE)}",
            hint="use the version of celebdit that registered it, or a newer one",
        ) from error
    if file_sha256(weights) != description.weights_sha256:
        weights.unlink()
        raise DataRefused(
            f"the weights of {version} are not those that were registered",
            hint="register the checkpoint again, and check who can write to MLflow's artifact store",
        )
    return ModelFiles(folder, weights, description)
