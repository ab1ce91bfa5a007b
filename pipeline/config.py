"""One typed configuration for a whole run: preset or file, then overrides, then a canonical form with a digest.

Promises: what validates here is accepted by every step; unknown keys, impossible combinations, settings of another variant and bounds on
metrics that will not be measured are refused before anything starts, all problems at once, with a hint; equal configurations have equal
canonical bytes and digests. Endpoints and secrets are never part of it.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args, get_origin

import tomli_w
from pydantic import Field, ValidationError

from components.errors import BadInput, shorten
from components.evaluate.config import EvaluationConfig
from components.features.config import FeaturesConfig
from components.gate.config import GateConfig
from components.ingest.config import DataConfig
from components.registry.config import RegistryConfig
from components.resources import ResourcesConfig
from components.validation import location, problem_lines
from model.canonical import JsonObject, canonical_json, digest_of
from model.config import DiffusionConfig, DistillConfig, NetworkConfig, OptimizerConfig, Recipe, SamplingConfig, TrainingConfig
from model.frozen_config import FrozenConfig
from pipeline.config_files import parse_override, read_layers
from pipeline.config_relations import relation_problems
from pipeline.setting_names import nearest_setting
from pipeline.variants import drop_unchosen


class RunConfig(FrozenConfig):
    """A run of the pipeline, one section per concern; each step gets only the sections that it needs."""

    data: DataConfig
    network: NetworkConfig
    diffusion: DiffusionConfig = Field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig
    distill: DistillConfig = Field(default_factory=DistillConfig, exclude_if=lambda distill: distill == DistillConfig())
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig
    gate: GateConfig = Field(default_factory=GateConfig)
    registry: RegistryConfig = Field(default_factory=RegistryConfig)
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)

    def problems(self) -> Iterator[str]:
        yield from relation_problems({name: getattr(self, name) for name in type(self).model_fields})

    @property
    def recipe(self) -> Recipe:
        """The sections that decide what is trained; the teacher of a distillation is still to be looked up."""
        return Recipe(
            network=self.network,
            diffusion=self.diffusion,
            optimizer=self.optimizer,
            training=self.training,
            sampling=self.sampling,
            distill=None if self.distill.teacher is None else self.distill,
        )

    def sections(self) -> dict[str, str]:
        """Return every section as canonical JSON: the parameters of the pipeline; null for `distill` if there is no teacher."""
        stored = self._as_json()
        return {name: canonical_json(stored.get(name)).decode() for name in type(self).model_fields}

    def features(self) -> str:
        """Return what the train step needs of `evaluation` as canonical JSON: null without scores, so that its cache key is narrow."""
        scores = self.training.score_every_steps is not None
        return canonical_json(FeaturesConfig.of(self.evaluation).model_dump(mode="json") if scores else None).decode()

    def canonical(self) -> bytes:
        """Return the bytes that equal configurations share."""
        return canonical_json(self._as_json())

    def digest(self) -> str:
        """Return the sha256 of the canonical form."""
        return digest_of(self._as_json())

    def _as_json(self) -> JsonObject:
        return {**self.model_dump(mode="json"), "resources": self.resources.stored_settings()}

    def toml(self) -> str:
        """Return a TOML file that `load_config` reads as this configuration; a field without a value is left out."""
        # exclude_none also drops a None below a section, like a toleration's value: TOML has no null.
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def section_kinds() -> dict[str, type[FrozenConfig]]:
    """Return the model of each section."""
    return {name: cast(type[FrozenConfig], field.annotation) for name, field in RunConfig.model_fields.items()}


def load_config(preset_or_file: str, overrides: Sequence[str] = (), *, changes: Mapping[str, object] | None = None) -> RunConfig:
    """Return the configuration of a preset or TOML file after `overrides` (`section.key=value`) and `changes` (already typed).

    Raises:
        BadInput: naming field, value, bound and, where one is near, the name that was probably meant; one problem a line.
    """
    return override_config(load_tables(preset_or_file), overrides, changes=changes)


def load_tables(preset_or_file: str) -> dict[str, Any]:
    """Return the tables of a preset or TOML file over those of its bases, nothing validated.

    Raises:
        BadInput: if a file does not exist, is not TOML, or names a base that leads back to itself.
    """
    raw: dict[str, Any] = {}
    for layer in read_layers(preset_or_file):
        raw = _merge(raw, layer)
    return raw


def override_config(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, changes: Mapping[str, object] | None = None) -> RunConfig:
    """Validate nested plain values as a configuration, after `overrides` and `changes` as in `load_config`.

    Raises:
        BadInput: naming every problem, one a line.
    """
    return validate_config(_override(raw, overrides, changes or {}))


def load_data(overrides: Sequence[str] = (), *, changes: Mapping[str, object] | None = None) -> DataConfig:
    """Return the `data` section alone, from its defaults, `changes` (already typed) and `overrides` (`data.key=value`).

    Raises:
        BadInput: as `load_config` does.
    """
    raw: dict[str, Any] = {"data": {}}
    for path, value in (changes or {}).items():
        _set(raw, path.split("."), value, origin=path)
    for override in overrides:
        parts, value = _read_override(override)
        if parts[0] != "data":
            raise BadInput(f"{override!r} is not a setting of the data section", hint="write data.key=value, like data.max_rejected=0.05")
        _set(raw, parts, value, origin=override)
    try:
        return DataConfig.model_validate_json(plain_json(raw["data"], "data"))
    except ValidationError as error:
        raise BadInput("\n".join(problem_lines(error, section="data")), hint=_nearest(error, parents=("data",))) from error


def validate_config(raw: Mapping[str, Any]) -> RunConfig:
    """Validate nested plain values as a configuration.

    Raises:
        BadInput: naming every problem, one a line.
    """
    try:
        return RunConfig.model_validate_json(plain_json(raw))
    except ValidationError as error:
        lines = problem_lines(error, section=None) + list(relation_problems(_valid_sections(raw, error)))
        raise BadInput("\n".join(lines), hint=_nearest(error)) from error


def plain_json(raw: Mapping[str, Any], *parents: str) -> str:
    """Return the tables of a TOML file as JSON, which strict models read.

    Raises:
        BadInput: naming each value that JSON does not have.
    """
    if unusable := list(_unusable_values(raw, parents)):
        raise BadInput("\n".join(unusable), hint="use texts in UTF-8, finite numbers, booleans, lists and tables")
    return json.dumps(raw)


def _unusable_values(value: object, path: tuple[str, ...]) -> Iterator[str]:
    """Return one line per value that JSON does not have: TOML has dates, and numbers that are not finite."""
    match value:
        case Mapping():
            for name, item in value.items():
                if not _is_unicode(str(name)):
                    yield f"{location(path)}: the name {shorten(repr(str(name)))} is not UTF-8"
                yield from _unusable_values(item, (*path, str(name)))
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _unusable_values(item, (*path, str(index)))
        case float() if not math.isfinite(value):
            yield f"{location(path)}: {value} is not finite"
        case str() if not _is_unicode(value):
            yield f"{location(path)}: {value[:200]!r} is not UTF-8"
        case None | bool() | int() | float() | str():
            pass
        case _:
            yield f"{location(path)}: {value} is of a kind that is not accepted"


def _is_unicode(text: str) -> bool:
    """Return whether `text` was read from UTF-8: bytes of an argument that are none stand in it as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _valid_sections(raw: Mapping[str, Any], error: ValidationError) -> dict[str, FrozenConfig]:
    """Return the sections that `error`, which is about `raw`, does not name, so that their relations can be checked as well."""
    broken = {problem["loc"][0] for problem in error.errors() if problem["loc"]}
    if not broken:  # the sections are valid, and `error` is about their relations already
        return {}
    kinds = {name: kind for name, kind in section_kinds().items() if name not in broken}
    return {name: kind.model_validate_json(json.dumps(raw.get(name, {}))) for name, kind in kinds.items()}


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the settings of `layer` in place of its own, section by section."""
    merged = dict(base)
    for name, section in layer.items():
        both = isinstance(section, dict) and isinstance(base.get(name), dict)
        merged[name] = {**base[name], **section} if both else copy.deepcopy(section)
    drop_unchosen(merged, base, layer, section_kinds())
    return merged


def _override(raw: Mapping[str, Any], overrides: Sequence[str], changes: Mapping[str, object]) -> dict[str, Any]:
    changed, layer = copy.deepcopy(dict(raw)), dict[str, Any]()
    parsed = [(*_read_override(override), override) for override in overrides]
    for path, value, origin in [*parsed, *((path.split("."), value, path) for path, value in changes.items())]:
        _set(changed, path, value, origin=origin)
        _set(layer, path, value, origin=origin)
    drop_unchosen(changed, raw, layer, section_kinds())
    _check_teacher_is_removed_on_purpose([(path, value) for path, value, _ in parsed], raw)
    return changed


def _read_override(override: str) -> tuple[list[str], Any]:
    """Return path and value of an override, None for an empty value, which unsets a setting that can be unset.

    Raises:
        BadInput: if the value is empty and the setting cannot be unset: its default was not asked for.
    """
    path, value = parse_override(override)
    if value is not None:
        return path, value
    fields = getattr(section_kinds().get(path[0]), "model_fields", {})
    if path[1] not in fields:
        return path, ""  # it is reported with other unknown keys
    annotation = fields[path[1]].annotation
    if type(None) in get_args(annotation) or (len(path) > 2 and get_origin(annotation) is dict):
        return path, None
    raise BadInput(
        f"{'.'.join(path)} has no value and cannot be unset; is a variable of the shell not set?",
        hint="write a value, or leave the override out to keep what the preset sets",
    )


def _check_teacher_is_removed_on_purpose(overrides: Sequence[tuple[list[str], object]], raw: Mapping[str, Any]) -> None:
    """Refuse an empty teacher that removes none, or beside settings of a distillation: a training from initial weights was not meant."""
    last = {tuple(path): value for path, value in overrides}
    is_removed = last.get(("distill", "teacher"), "") is None
    distills = any(path[0] == "distill" and value is not None for path, value in last.items())
    if is_removed and (distills or not _has_teacher(raw)):
        raise BadInput(
            "distill.teacher is empty; is a variable of the shell not set?",
            hint="name a run key, or leave it out to train without a teacher",
        )


def _has_teacher(raw: Mapping[str, Any]) -> bool:
    distill = raw.get("distill")
    return isinstance(distill, dict) and distill.get("teacher") is not None


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


def _nearest(error: ValidationError, *, parents: tuple[str, ...] = ()) -> str | None:
    """Return guesses at what unknown keys were meant to be."""
    unknown = [(*parents, *map(str, problem["loc"])) for problem in error.errors() if problem["type"] == "extra_forbidden"]
    guesses = [guess for path in unknown if (guess := _guess(path)) is not None]
    return "; ".join(guesses) or None


def _guess(path: tuple[str, ...]) -> str | None:
    *sections, wrong = path
    kinds = section_kinds()
    if len(sections) > 1 or (sections and sections[0] not in kinds):
        return None
    if near := nearest_setting(sections[0] if sections else None, wrong, {name: list(kind.model_fields) for name, kind in kinds.items()}):
        return f"did you mean {near}?"
    return f"known here: {', '.join(sorted(kinds[sections[0]].model_fields if sections else kinds))}"
