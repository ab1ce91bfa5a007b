"""Files of a registered version on this machine, once they are known to be those that were registered. Imports no MLflow."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from components.errors import DataRefused
from components.storage import file_sha256
from components.validation import describe
from model.description import VersionDescription

WEIGHTS_FILE, DESCRIPTION_FILE = "weights.safetensors", "description.json"


@dataclass(frozen=True)
class ModelFiles:
    """The files of a version, downloaded and verified."""

    folder: Path
    weights: Path
    description: VersionDescription
    manifest_sha256: str | None
    """Digest of the manifest that all files in `folder` were checked against; None for a version that was registered before versions had
    manifests: then the weights and the description alone are there, and the code that was stored with them is not to be run."""


def read_version_files(folder: Path, version: str, manifest_sha256: str | None) -> ModelFiles:
    """Return the files in `folder`; `version` names the version in errors.

    Raises:
        DataRefused: if it is not a model of this project, or its weights are not those that its description names.
    """
    weights = folder / "artifacts" / WEIGHTS_FILE
    if not weights.exists() or not (folder / "artifacts" / DESCRIPTION_FILE).exists():
        raise DataRefused(f"{version} is not a model of celebdit: it has no {WEIGHTS_FILE}")
    try:
        description = VersionDescription.read(folder / "artifacts" / DESCRIPTION_FILE)
    except ValidationError as error:
        raise DataRefused(
            f"{version} is not one that this version of celebdit can read: {describe(error, section=DESCRIPTION_FILE)}",
            hint="use the version of celebdit that registered it, or a newer one",
        ) from error
    if file_sha256(weights) != description.weights_sha256:
        raise DataRefused(
            f"the weights of {version} are not those that were registered",
            hint="register the checkpoint again, and check who can write to MLflow's artifact store",
        )
    return ModelFiles(folder, weights, description, manifest_sha256)
