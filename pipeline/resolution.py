"""Resolve what a person entered in the form of a compiled pipeline: a preset, overrides and the acceptance of the licence.

Promises: the result is what `celebdit run PRESET OVERRIDES` would use; what the compiled pods do not have is refused with the command that
compiles a pipeline which has it. Pure: texts in, a configuration out.
"""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from components.errors import BadInput
from components.ingest.sources.open_source import kind_of, require_consent
from components.resources import ResourcesConfig
from pipeline.config import RunConfig, override_config, validate_config
from pipeline.config_files import preset_names

Sections = Mapping[str, str]
"""Section of the configuration -> canonical JSON."""


def write_presets(presets: Mapping[str, Sections]) -> str:
    """Return the configurations that a compiled pipeline offers, as one JSON text for `resolve`; a section that is null is left out."""
    read = {name: {section: json.loads(text) for section, text in sections.items()} for name, sections in presets.items()}
    return json.dumps({name: {section: value for section, value in table.items() if value is not None} for name, table in read.items()})


def resolve(presets: str, *, preset: str, overrides: str, licence_accepted_by: str) -> RunConfig:
    """Return the configuration of `preset`, one of those that `write_presets` wrote, after `overrides`, a text as on the command line.

    Raises:
        BadInput: with every setting that is wrong, and with what the compiled pipeline cannot do.
    """
    known = json.loads(presets)
    if preset not in known:
        raise BadInput(f"preset {preset!r} is not in this pipeline", hint=f"choose one of {', '.join(known)}")
    changes = {"data.licence_accepted_by": licence_accepted_by.strip()} if licence_accepted_by.strip() else {}
    config = override_config(known[preset], split_overrides(overrides), changes=changes)
    compiled = validate_config(known[preset]).resources
    if differences := list(graph_differences(compiled, config.resources)):
        source = preset if preset in preset_names() else f"{preset}.toml"
        command = shlex.join(["celebdit", "compile", source, *split_overrides(overrides), "--output", "pipeline.yaml"])
        raise BadInput("\n".join(differences), hint=f"compile a pipeline with it: {command}")
    require_consent(config.data)
    _require_source(config)
    return config


def split_overrides(text: str) -> list[str]:
    """Return the overrides in `text`, separated by white space or line ends and quoted as in a shell.

    Raises:
        BadInput: if a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadInput(
            f"overrides cannot be read: {error}", hint="""quote as in a shell: 'resources.node_selector={pool="h200"}' training.seed=1"""
        ) from error


def graph_differences(compiled: ResourcesConfig, requested: ResourcesConfig) -> list[str]:
    """Return one line per setting of `requested` that pods compiled for `compiled` do not have."""
    before, after = compiled.compiled_settings(), requested.compiled_settings()
    return [
        f"resources.{name} {_value(after.get(name))} needs another pipeline: this one is compiled for {_value(before.get(name))}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _value(value: Any) -> str:
    return "none" if value is None else json.dumps(value)


def _require_source(config: RunConfig) -> None:
    """Refuse a local source that is not on this machine: a step would find it out after minutes."""
    kind = kind_of(config.data.source)
    if kind.local_path is not None and not kind.local_path(config.data.source).exists():
        raise BadInput(
            f"data.source {config.data.source} does not exist where the steps run", hint="upload it to S3 and set data.source=s3://..."
        )
