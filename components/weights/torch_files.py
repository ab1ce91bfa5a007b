"""Reads tensors from a third-party torch file without running anything in it.

Promises: before a byte is unpickled, the file is checked to be an uncompressed archive of bounded size whose pickle names nothing but
ordered dictionaries and dense tensors; then `torch.load(weights_only=True)` reads it; the result is a plain dictionary of names and
tensors. This is the only place where a pickle is opened. Does not check that the tensors belong to a network; see
`published_checkpoint.py`.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from components.errors import BadInput, DataRefused, first_line, shorten

_MAX_PICKLE_BYTES = 16 * 2**20
_ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long")),
}
_FORBIDDEN_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}


def read_tensors(path: Path, *, max_bytes: int) -> dict[str, Tensor]:
    """Return the state dictionary in `path`, a file that `torch.save` wrote.

    Raises:
        BadInput: if the file cannot be read.
        DataRefused: if it is anything but a dictionary of tensors of at most `max_bytes`, with the reason.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadInput(f"{path} is a device, pipe or socket", hint="name the file that `torch.save` wrote")
    try:
        with path.open("rb") as file:
            _check_archive(file, path, max_bytes)
            file.seek(0)
            return _named_tensors(torch.load(file, map_location="cpu", weights_only=True), path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except DataRefused:
        raise
    except Exception as error:  # the readers of zip and pickle raise almost anything on hostile bytes
        raise DataRefused(f"{path} is not a readable torch file: {first_line(error)}", hint="download it again") from error


def _check_archive(file: BinaryIO, path: Path, max_bytes: int) -> None:
    if not zipfile.is_zipfile(file):
        raise DataRefused(f"{path} is not a torch file (a zip archive)", hint="pass the file that `torch.save` wrote, not an archive of it")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DataRefused(f"{path} is compressed, which files of torch.save never are")
        if (total := sum(member.file_size for member in members)) > max_bytes:
            raise DataRefused(f"{path} holds {total} bytes, at most {max_bytes} are expected")
        pickles = [member for member in members if member.filename.endswith(".pkl")]
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
            raise DataRefused(f"{path} is not a torch file: it holds {len(pickles)} pickles, expected data.pkl alone")
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise DataRefused(f"{path} has a pickle of {pickles[0].file_size} bytes, at most {_MAX_PICKLE_BYTES} are expected")
        _check_pickle(archive.read(pickles[0]), path)


def _check_pickle(pickled: bytes, path: Path) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if (opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS) or opcode.name in _FORBIDDEN_OPCODES:
            name = f"{argument}".replace(" ", ".") if argument else opcode.name
            raise DataRefused(
                f"{path} is not a plain dictionary of tensors: its pickle uses {name!r}; nothing in it was executed",
                hint="do not load this file elsewhere unless you trust its author; a plain state_dict is accepted",
            )


def _named_tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise DataRefused(f"{path} holds a {type(loaded).__name__}, expected a dictionary of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise DataRefused(f"{path} is not a plain dictionary of tensors: entry {shorten(repr(str(name)))} is a {type(tensor).__name__}")
    return dict(loaded)
