"""Where configurations come from: presets, TOML files with the base that they name, and overrides. All as plain tables, nothing validated.

A file may begin with `base = "NAME"`: a preset, a file (relative to its own folder), or one of the tables in `presets/base/`, which are not
presets by themselves. What the file says replaces what its base says, setting by setting.

Promises: whatever a file or an override contains, what does not fail here is plain values of few levels, which every reader can follow.
"""

import difflib
import itertools
import os
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from components.errors import BadInput, shorten

_PRESETS = files("pipeline") / "presets"
_BASES = _PRESETS / "base"
_MAX_FILE_BYTES = 2**20
_MAX_LEVELS = 16
_MAX_PARTS = 64
_LONG_KEY = re.compile(rf"(?:[\w\"'-]++\s*+\.\s*+){{{_MAX_PARTS}}}")
_MAX_INTEGER_BITS = 128
"""A setting has at most 64; a little more gets that setting's own error."""


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


def preset_summary(name: str) -> list[str]:
    """Return the comment at the head of a preset: what it is for, its size, and how long it takes."""
    lines = (_PRESETS / f"{name}.toml").read_text().splitlines()
    return [line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines)]


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
            layer = _parse(source.text)
        except ValueError as error:
            raise BadInput(f"{source.name} is not valid TOML: {error}") from error
        base = layer.pop("base", None)
        layers.insert(0, layer)
        if base is None:
            return layers
        if not isinstance(base, str):
            raise BadInput(f"base of {source.name} is {shorten(repr(base))}", hint='write base = "NAME", a preset or a file')
        following = _find(base, named_by=source)
        chain.append(following)
        if any(following.identity == earlier.identity for earlier in chain[:-1]):
            names = " -> ".join(link.name for link in chain)
            raise BadInput(f"base {base!r} of {source.name} leads back to itself: {names}", hint="remove one of these base lines")


def read_table(path: Path) -> dict[str, Any]:
    """Return the table of one TOML file, whose `base` is an entry like any other.

    Raises:
        BadInput: if it cannot be read or is not TOML.
    """
    try:
        return _parse(_read_file(path))
    except ValueError as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error


def parse_override(override: str) -> tuple[list[str], Any]:
    """Read `section.key=value`: the key as TOML writes it, the value as TOML or, if it is not TOML, as a plain text; none unsets it."""
    name, separator, text = override.partition("=")
    try:
        nested: Any = _parse(f"{name} = 0") if separator else {}
    except ValueError:
        nested = {}
    path: list[str] = []
    while isinstance(nested, dict) and len(nested) == 1:
        ((part, nested),) = nested.items()
        path.append(part)
    if len(path) < 2 or isinstance(nested, dict):
        raise BadInput(f"{shorten(repr(override))} is not an override", hint="write section.key=value, like training.total_steps=1000")
    if not text.strip():
        return path, None
    try:
        parsed = _parse(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return path, text.strip()
    except ValueError as error:
        raise BadInput(f"{shorten(name)}: its value cannot be read: {error}") from error
    return path, parsed["value"] if len(parsed) == 1 else text.strip()


def _parse(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ValueError: if it is not TOML, or nested deeper or with larger integers than any setting is.
    """
    if _LONG_KEY.search(text):  # tomllib's time grows with the square of a key's parts
        raise ValueError(f"a key in it has more than {_MAX_PARTS} parts")
    too_deep = f"it is nested more than {_MAX_LEVELS} levels deep"
    too_large = f"an integer in it has more than {_MAX_INTEGER_BITS} bits"
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    except ValueError as error:  # of an integer with thousands of digits, if not of the syntax
        raise error if isinstance(error, tomllib.TOMLDecodeError) else ValueError(too_large) from None
    remaining: list[tuple[Any, int]] = [(tables, 1)]
    while remaining:
        value, level = remaining.pop()
        if level > _MAX_LEVELS:
            raise ValueError(too_deep)
        if isinstance(value, dict | list):
            remaining += [(inner, level + 1) for inner in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise ValueError(too_large)
    return tables


def _find(name: str, *, named_by: _Source | None = None) -> _Source:
    """Return the preset or file that `name` means, or the base of `named_by`."""
    if name in preset_names():
        return _Source(name, (_PRESETS / f"{name}.toml").read_text())
    if named_by is not None and name in _names(_BASES):
        return _Source(f"base/{name}", (_BASES / f"{name}.toml").read_text())
    path = Path(name) if named_by is None or named_by.path is None else named_by.path.parent / name
    if path.suffix == ".toml" or "/" in name or os.path.lexists(path):
        return _Source(str(path), _read_file(path), path)
    known = preset_names() if named_by is None else sorted({*preset_names(), *_names(_BASES)})
    near = difflib.get_close_matches(name[:100], known, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    subject = shorten(repr(name)) if named_by is None else f"base {shorten(repr(name))} of {named_by.name}"
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
        raise BadInput(f"{shorten(str(path))} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not a UTF-8 text") from error
    except ValueError as error:
        raise BadInput(f"{shorten(repr(str(path)))} cannot be read: {error}") from error


def _names(folder: Traversable) -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
