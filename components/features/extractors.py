"""Identity and weights of the configured feature extractor.

Promises: an extractor's identity changes with its weights and, if it is the user's own, with its source; weights are used only if their
sha256 is the configured one. Needs no PyTorch, so that a finished evaluation is found quickly. See `build.py` for the networks.
"""

import importlib.util
from pathlib import Path

from components.errors import BadInput, DataRefused
from components.features.config import ExtractorChoice
from components.features.names import DINOV2
from components.features.names import RANDOM_CONV as RANDOM_CONV_CHOICE
from components.storage import ObjectStore, StoreUri, file_sha256

RANDOM_CONV = "celebdit-random-conv"
RANDOM_CONV_VERSION = 1
VGG16 = "vgg16"
DINOV2_SIDE_PX = 224
_TREATMENTS = {DINOV2: f"bicubic-antialias-{DINOV2_SIDE_PX}"}
"""What an extractor of this project does to images before its network; torch-fidelity's are the same in every version that is used."""
WEIGHTS_HINT = (
    "the file of its weights is in the torch-fidelity project's releases (Inception: weights-inception-2015-12-05-6726825d.pth), "
    "torchvision's (VGG16: vgg16-397923af.pth) or DINOv2's (ViT-L/14: dinov2_vitl14_pretrain.pth); add it once to the store: "
    "celebdit weights add FILE"
)


def identity_of(config: ExtractorChoice) -> str:
    """Return the identity of the configured extractor, down to its weights or source; usable in an object's key."""
    if config.extractor == RANDOM_CONV_CHOICE:
        return f"{RANDOM_CONV}-{RANDOM_CONV_VERSION}"
    parts = [config.extractor.replace(":", ".")]
    if config.extractor in _TREATMENTS:
        parts.append(_TREATMENTS[config.extractor])
    if ":" in config.extractor:
        parts.append(_source_sha256(config.extractor)[:16])
    if config.weights_sha256 is not None:
        parts.append(config.weights_sha256)
    return "-".join(parts)


def vgg_identity_of(weights_sha256: str | None) -> str | None:
    """Return the identity of the features for precision and recall, if they have their own."""
    return None if weights_sha256 is None else f"{VGG16}-{weights_sha256}"


def _source_sha256(chosen: str) -> str:
    module = chosen.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise BadInput(
            f"evaluation.extractor {chosen!r} cannot be imported: {error}", hint="install its package beside this one"
        ) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise BadInput(f"evaluation.extractor {chosen!r}: there is no module {module!r}", hint="install its package beside this one")
    return file_sha256(Path(spec.origin))


def fetch_weights(
    location: str | None, sha256: str | None, store: ObjectStore, folder: Path, *, setting: str, stored: StoreUri | None = None
) -> Path:
    """Return a local path of weights, verified against `sha256`; `setting` is their name in the configuration.

    Without a location they are those at `stored`, or what an earlier call of this step put into `folder`.
    """
    assert sha256 is not None, "the configuration was validated"
    if location is None:
        location = str(stored) if stored is not None else f"s3://store/weights/{sha256}.pth"
        path = folder / f"{sha256}.pth"
        if not path.exists() and (stored is None or not store.exists(stored)):
            raise BadInput(f"the weights of evaluation.{setting}_sha256 {sha256} are not in the store", hint=WEIGHTS_HINT)
    if location.startswith("s3://"):
        path = folder / f"{sha256}.pth"
        if not (path.exists() and file_sha256(path) == sha256):
            store.get_file(StoreUri.parse(location), path, sha256=sha256)
    else:
        path = Path(location)
        if not path.is_file():
            raise BadInput(f"evaluation.{setting} {path} does not exist", hint=WEIGHTS_HINT)
    if (actual := file_sha256(path)) != sha256:
        raise DataRefused(
            f"evaluation.{setting} {location} has sha256 {actual}, evaluation.{setting}_sha256 is {sha256}", hint=WEIGHTS_HINT
        )
    return path
