"""Where configurations come from: presets, TOML files with the base that they name, and overrides. All as plain tables, nothing validated.

A file may begin with `base = "NAME"`: a preset, a file (relative to its own folder), or one of the tables in `presets/base/`, which are not
presets by themselves. What the file says replaces what its base says, setting by setting.
"""

import difflib
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from components.errors import BadInput

_PRESETS = files("pipeline") / "presets"
_BASES = _PRESETS / "base"
_MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class _Source:
    """A preset, a base or a file."""

    name: str
    text: str
    path: Path | None = None

    @property
    def identity(self) -> str:
        return self.name if self.path is None else str(self.path.resolve())


def preset_names() -> list[str]:
    """Return the names of the presets that are shipped."""
    return _names(_PRESETS)


def read_layers(preset_or_file: str) -> list[dict[str, Any]]:
    """Return the tables of a preset or TOML file and of its bases, the outermost base first.

    Raises:
        BadInput: if one does not exist, is not TOML, or names a base that leads back to itself.
    """
    layers: list[dict[str, Any]] = []
    chain = [_find(preset_or_file)]
    while True:
        source = chain[-1]
        try:
            layer = tomllib.loads(source.text)
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{source.name} is not valid TOML: {error}") from error
        base = layer.pop("base", None)
        layers.insert(0, layer)
        if base is None:
            return layers
        if not isinstance(base, str):
            raise BadInput(f"base of {source.name} is {base!r}", hint='write base = "NAME" with the name of a preset or a file')
        following = _find(base, named_by=source)
        chain.append(following)
        if any(following.identity == earlier.identity for earlier in chain[:-1]):
            names = " -> ".join(link.name for link in chain)
            raise BadInput(f"base {base!r} of {source.name} leads back to itself: {names}", hint="remove one of these base lines")


def parse_override(override: str) -> tuple[list[str], Any]:
    """Read `section.key=value`: the key as TOML writes it, the value as TOML or, if it is not TOML, as a plain text; none unsets it."""
    name, separator, text = override.partition("=")
    try:
        nested: Any = tomllib.loads(f"{name} = 0") if separator else {}
    except tomllib.TOMLDecodeError:
        nested = {}
    path: list[str] = []
    while isinstance(nested, dict) and nested:
        ((part, nested),) = nested.items()
        path.append(part)
    if len(path) < 2:
        raise BadInput(f"{override!r} is not an override", hint="write section.key=value, like training.total_steps=1000")
    if not text.strip():
        return path, None
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path, text.strip()


def _find(name: str, *, named_by: _Source | None = None) -> _Source:
    """Return the preset or file that `name` means, or the base of `named_by`."""
    if name in preset_names():
        return _Source(name, (_PRESETS / f"{name}.toml").read_text())
    if named_by is not None and name in _names(_BASES):
        return _Source(f"base/{name}", (_BASES / f"{name}.toml").read_text())
    path = Path(name) if named_by is None or named_by.path is None else named_by.path.parent / name
    if path.suffix == ".toml" or "/" in name or path.exists():
        return _Source(str(path), _read_file(path), path)
    known = preset_names() if named_by is None else sorted({*preset_names(), *_names(_BASES)})
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    subject = repr(name) if named_by is None else f"base {name!r} of {named_by.name}"
    raise BadInput(f"{subject} is neither a preset nor a file", hint=f"{guess}presets: {', '.join(known)}")


def _read_file(path: Path) -> str:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading it may wait for ever, or never end
            raise BadInput(f"{path} is a device, pipe or socket", hint="name a TOML file")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadInput(f"{path} is larger than {_MAX_FILE_BYTES} bytes, which no configuration is")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist", hint=f"name a TOML file, or one of the presets {', '.join(preset_names())}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not a UTF-8 text") from error


def _names(folder: Traversable) -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
