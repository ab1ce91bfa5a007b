"""Check the weights of the metrics' networks before a GPU is requested: their sha256, and the names and shapes of their tensors.

Promises: nothing in the file is executed, and PyTorch is not imported: of its pickle only names and shapes are read, through a list of what
such a file may name. Weights in object storage are downloaded to where the evaluate step of the same machine finds them.
"""

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from components.errors import BadInput, DataRefused, first_line
from components.preflight.metric_networks import NETWORKS, Shapes
from components.runtime.context import StepContext
from components.storage import StoreUri
from components.system.locks import lock
from components.system.work_folders import WorkFolder

_HINT = "upload the file, or do without Inception: evaluation.extractor=random-conv (and leave out gate bounds on eval/fid_...)"
_FILES_HINT = (
    "the file is in the torch-fidelity project's releases (Inception: weights-inception-2015-12-05-6726825d.pth), torchvision's "
    "(VGG16: vgg16-397923af.pth) or DINOv2's (ViT-L/14: dinov2_vitl14_pretrain.pth)"
)
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LEGACY_PICKLES_AHEAD = 3
_MAX_PICKLE_BYTES = 16 * 2**20
_NAMES_SHOWN = 3
_IGNORED_NAME = ".num_batches_tracked"


def check_metric_weights(location: str | None, sha256: str | None, network: str, context: StepContext, *, setting: str) -> str:
    """Return a line about the weights at `location`, by default those in the store.

    `setting` is their name in the configuration, `network` what they belong to.

    Raises:
        BadInput: if there are none. DataRefused: if they are not those with `sha256`, or not those of `network`.
    """
    if location is None:
        assert sha256 is not None, "the configuration was validated"
        location = str(context.layout.metric_weights(sha256))
        if not context.store.exists(StoreUri.parse(location)):
            missing = f"the weights of evaluation.{setting}_sha256 {sha256} are not in the store {context.root}"
            raise BadInput(missing, hint=f"add their file once: celebdit weights add FILE; {_FILES_HINT}")
    path = _fetch(location, sha256, context, setting)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and actual != sha256:
        raise DataRefused(
            f"evaluation.{setting} {location} has sha256 {actual}, evaluation.{setting}_sha256 is {sha256}",
            hint=f"put the right file there, or set {setting}_sha256 (sha256sum FILE prints it); {_FILES_HINT}",
        )
    expected = NETWORKS.get(network)
    if expected is None:
        return f"{location} has its sha256; the tensors of {network} are not known"
    try:
        shapes = tensor_shapes(path)
    except UnknownPickle as unknown:
        return f"{location} has its sha256; its tensors were not looked at ({unknown})"
    except DataRefused as error:
        raise DataRefused(f"evaluation.{setting} {location} {error.message}", hint=_FILES_HINT) from error
    if problem := difference(shapes, expected):
        raise DataRefused(f"evaluation.{setting} {location} are not the weights of {network}: {problem}", hint=_FILES_HINT)
    return f"{location} has its sha256 and the {len(shapes)} tensors of {network}"


def _fetch(location: str, sha256: str | None, context: StepContext, setting: str) -> Path:
    if not location.startswith("s3://"):
        path = Path(location)
        if not path.is_file():
            raise BadInput(f"evaluation.{setting} {location} does not exist", hint=_HINT)
        return path
    uri = StoreUri.parse(location)
    if not context.store.exists(uri):
        raise BadInput(f"evaluation.{setting} {location} does not exist", hint=_HINT)
    folder = context.scratch(WorkFolder.WEIGHTS)
    path = folder / f"{sha256 or hashlib.sha256(location.encode()).hexdigest()}.pth"
    with lock(path.with_suffix(".lock")):
        if not _has_digest(path, sha256):
            context.store.get_file(uri, path)
    return path


def _has_digest(path: Path, sha256: str | None) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def network_of(shapes: Shapes) -> str | None:
    """Return the name of the network that tensors with these names and shapes belong to, or None if it is not known."""
    return next((name for name, expected in NETWORKS.items() if difference(shapes, expected) is None), None)


def difference(shapes: Shapes, expected: Shapes) -> str | None:
    """Return in words how tensors differ from those that a network has, or None; what only counts batches does not matter."""
    names = {name for name in shapes if not name.endswith(_IGNORED_NAME)}
    missing, unknown = sorted(expected.keys() - names), sorted(names - expected.keys())
    lists = (("are missing", missing), ("are unknown", unknown))
    parts = [f"{len(differing)} {what} ({_list_names(differing)})" for what, differing in lists if differing]
    if parts:
        return f"of its {len(expected)} tensors {' and '.join(parts)}"
    other = [name for name in sorted(names) if expected[name] is not None and shapes[name] != expected[name]]
    return f"{other[0]} has shape {shapes[other[0]]}, expected {expected[other[0]]}" if other else None


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


class UnknownPickle(Exception):
    """A pickle that names something else than tensors."""


def tensor_shapes(path: Path) -> Shapes:
    """Return names and shapes of the tensors in a file of `torch.save`, of today's form or of the one before PyTorch 1.6.

    Raises:
        DataRefused: if it is none, with the reason as the end of a sentence. UnknownPickle: if it holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            return _named_shapes(_load_zip(file) if zipfile.is_zipfile(file) else _load_legacy(file))
    except (UnknownPickle, DataRefused):
        raise
    except Exception as error:  # the readers of zip and pickle raise almost anything on hostile bytes
        raise DataRefused(f"is not a readable torch file: {first_line(error)}") from error


def _load_zip(file: IO[bytes]) -> object:
    with zipfile.ZipFile(file) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise DataRefused("is a zip, but no torch file")
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise DataRefused(f"has a pickle of {pickles[0].file_size} bytes, at most {_MAX_PICKLE_BYTES} are expected")
        return _ShapesOnly(io.BytesIO(archive.read(pickles[0]))).load()


def _load_legacy(file: IO[bytes]) -> object:
    file.seek(0)
    if file.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
        raise DataRefused("is not a torch file")
    file.seek(0)
    start = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    for _ in range(_LEGACY_PICKLES_AHEAD):
        _ShapesOnly(start).load()
    return _ShapesOnly(start).load()


def _named_shapes(loaded: object) -> Shapes:
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) and isinstance(shape, tuple) for name, shape in loaded.items()):
        raise UnknownPickle("it is not a dictionary of tensors")
    return dict(loaded)


class _ShapesOnly(pickle.Unpickler):
    """Reads a pickle of tensors with their shapes in place of them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, *others: tuple(shape)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda shape, *others: shape
        if module == "torch" and name.endswith("Storage"):
            return name
        raise UnknownPickle(f"it names {module}.{name}")

    def persistent_load(self, key: object) -> object:
        return key
