"""One typed configuration for a whole run: preset or file, then overrides, then a canonical form with a digest.

Promises: what validates here is accepted by every step; unknown keys and impossible combinations are refused with a hint before anything
starts; equal configurations have equal canonical bytes and digests. Endpoints and secrets are never part of it.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from components.errors import BadInput
from components.evaluate.config import EvaluationConfig
from components.gate.config import GateConfig
from components.ingest.config import DataConfig
from components.registry.config import RegistryConfig
from components.resources import ResourcesConfig
from components.runtime.context import describe
from model.batching import plan_batch
from model.canonical import canonical_json, digest_of
from model.config import DiffusionConfig, FrozenConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig

_PRESETS = files("pipeline") / "presets"
_MAX_FILE_BYTES = 2**20


class RunConfig(FrozenConfig):
    """A run of the pipeline, one section per concern; each step gets only the sections that it needs."""

    data: DataConfig
    network: NetworkConfig
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig
    gate: GateConfig = Field(default_factory=GateConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.data.image_px != self.network.image_px:
            raise ValueError(f"data.image_px {self.data.image_px} and network.image_px {self.network.image_px} must be the same")
        tracked = {f"{width:g}" for width in self.training.ema_sigma_rel} | ({"classic"} if self.training.ema_decay else set()) | {"none"}
        if self.sampling.ema not in tracked:
            raise ValueError(f"sampling.ema {self.sampling.ema!r} is not tracked by this training, which has {', '.join(sorted(tracked))}")
        if (self.gate.no_worse_than_champion or self.gate.better_than_champion) and not self.evaluation.champion:
            raise ValueError("gate.no_worse_than_champion compares with the champion: set evaluation.champion=true, or it to false")
        plan_batch(self.training.batch_images, self.resources.processes * self.resources.nodes, self.training.microbatch_images)
        return self

    def sections(self) -> dict[str, str]:
        """Return every section as canonical JSON: the parameters of the pipeline."""
        whole = self.model_dump(mode="json")
        return {name: canonical_json(whole[name]).decode() for name in type(self).model_fields}

    def canonical(self) -> bytes:
        """Return the bytes that equal configurations share."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return the sha256 of the canonical form."""
        return digest_of(self.model_dump(mode="json"))


def preset_names() -> list[str]:
    """Return the names of the presets that are shipped."""
    return sorted(entry.name.removesuffix(".toml") for entry in _PRESETS.iterdir() if entry.name.endswith(".toml"))


def load_config(preset_or_file: str, overrides: Sequence[str] = (), *, changes: Mapping[str, object] | None = None) -> RunConfig:
    """Return the configuration of a preset or TOML file after `overrides` (`section.key=value`) and `changes` (already typed).

    Raises:
        BadInput: naming field, value, bound and, where one is near, the name that was probably meant.
    """
    raw = _read(preset_or_file)
    for override in overrides:
        _set(raw, *_parsed(override), origin=override)
    for path, value in (changes or {}).items():
        _set(raw, path.split("."), value, origin=path)
    return validated(raw)


def load_data(overrides: Sequence[str] = (), *, changes: Mapping[str, object] | None = None) -> DataConfig:
    """Return the `data` section alone, from its defaults, `overrides` (`data.key=value`) and `changes` (already typed).

    Raises:
        BadInput: as `load_config` does.
    """
    raw: dict[str, Any] = {"data": {}}
    for path, value in (changes or {}).items():
        _set(raw, path.split("."), value, origin=path)
    for override in overrides:
        parts, value = _parsed(override)
        if parts[0] != "data":
            raise BadInput(f"{override!r} is not a setting of the data section", hint="write data.key=value, like data.max_rejected=0.05")
        _set(raw, parts, value, origin=override)
    try:
        return DataConfig.model_validate_json(json.dumps(raw["data"]))
    except ValidationError as error:
        near = difflib.get_close_matches(
            str(error.errors()[0]["loc"][-1:][0]) if error.errors()[0]["loc"] else "", DataConfig.model_fields, n=1
        )
        unknown = error.errors()[0]["type"] == "extra_forbidden"
        raise BadInput(describe(error, section="data"), hint=f"did you mean data.{near[0]}?" if unknown and near else None) from error


def validated(raw: Mapping[str, Any]) -> RunConfig:
    """Validate nested plain values as a configuration."""
    try:
        text = json.dumps(raw, allow_nan=False)
    except ValueError as error:
        raise BadInput("the configuration holds a number that is not finite", hint="nan and inf are not accepted anywhere") from error
    except TypeError as error:
        raise BadInput(
            f"the configuration holds a value of a kind that is not accepted: {error}",
            hint="use texts, numbers, booleans, lists and tables",
        ) from error
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(_describe(error), hint=_nearest(error)) from error


def _read(preset_or_file: str) -> dict[str, Any]:
    path = Path(preset_or_file)
    if preset_or_file in preset_names():
        text = (_PRESETS / f"{preset_or_file}.toml").read_text()
    elif path.suffix == ".toml" or "/" in preset_or_file or path.exists():
        text = _read_file(path)
    else:
        near = difflib.get_close_matches(preset_or_file, preset_names(), n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(f"{preset_or_file!r} is neither a preset nor a file", hint=f"{guess}presets: {', '.join(preset_names())}")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{preset_or_file} is not valid TOML: {error}") from error


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadInput(f"{path} is larger than {_MAX_FILE_BYTES} bytes, which no configuration is")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist", hint=f"give a TOML file, or one of the presets {', '.join(preset_names())}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not a UTF-8 text") from error


def _parsed(override: str) -> tuple[list[str], Any]:
    """Read `section.key=value`: the key as TOML writes it, the value as TOML or, if it is not TOML, as a plain text."""
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
    try:
        return path, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return path, text.strip()


def _set(raw: dict[str, Any], path: list[str], value: object, *, origin: str) -> None:
    target = raw
    for part in path[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise BadInput(f"{origin!r}: {part} is a value and has no parts")
        target = inner
    if value is None:
        target.pop(path[-1], None)
    else:
        target[path[-1]] = value


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    return describe(error, section="").lstrip(".").replace("key .", "key ")


def _nearest(error: ValidationError) -> str | None:
    """Return a guess at what an unknown key was meant to be."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return None
    *parents, wrong = (str(part) for part in first["loc"])
    known: dict[str, Any] = {}
    for name, field in RunConfig.model_fields.items():
        known[name] = sorted(field.annotation.model_fields)  # type: ignore[union-attr]
    names = known.get(parents[0], []) if parents else sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    return f"known here: {', '.join(names)}"
