"""Reads the tensors of a TorchScript archive without loading its code, which `torch.jit.load` would run.

Promises: of the archive only `data.pkl` and the bytes of its tensors are read. The pickle may name dense tensors, containers, and the
archive's own classes, which become plain records; a name outside of that list is refused. OpenAI publishes CLIP in this format alone.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import DataRefused

_MAX_PICKLE_BYTES = 16 * 2**20
_DTYPES = {"HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64}
_DTYPES |= {"LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")


def is_script_archive(path: Path) -> bool:
    """Return whether `path` is a TorchScript archive: a zip with `constants.pkl`, which files of `torch.save` do not have."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the module in the archive at `path`, by the names of its state dict.

    Raises:
        DataRefused: if its pickle names anything but tensors, containers and classes of the archive, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise DataRefused(f"{path.name} is no TorchScript archive with one data.pkl of at most {_MAX_PICKLE_BYTES} bytes")
        with archive.open(pickles[0]) as file:
            module = _Reader(file, archive, pickles[0].filename.removesuffix("data.pkl")).load()
    if not isinstance(module, _Record):
        raise DataRefused(f"{path.name} holds a {type(module).__name__}, expected a module")
    return dict(_named_tensors(module, ""))


class _Record:
    """An object of a class of the archive, with its attributes and without its code."""

    attributes: object = None

    def __setstate__(self, state: object) -> None:
        self.attributes = state


def _named_tensors(record: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in record.attributes.items() if isinstance(record.attributes, dict) else ():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Record):
            yield from _named_tensors(value, f"{prefix}{name}.")


class _Reader(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Record
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return lambda value, *type_tag: value
        raise DataRefused(f"its pickle names {module}.{name}, which is neither a tensor nor a class of the archive; nothing was executed")

    def persistent_load(self, key: Any) -> Tensor:
        kind, dtype, name, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise DataRefused(f"its pickle refers to a {kind!r}, expected a storage")
        if name not in self._storages:
            entry = self._archive.getinfo(f"{self._folder}data/{name}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * dtype.itemsize:
                raise DataRefused(f"{entry.filename} has {entry.file_size} bytes, expected {count} values of {dtype}, not compressed")
            content = self._archive.read(entry)
            self._storages[name] = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[name]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)
