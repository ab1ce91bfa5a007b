"""Which setting was meant by one that does not exist: a near name in its section, a name of another section, or a known synonym."""

import difflib
from collections.abc import Mapping, Sequence

_SYNONYMS = {
    "lr": "optimizer.lr_peak",
    "learning_rate": "optimizer.lr_peak",
    "warmup": "optimizer.warmup_steps",
    "wd": "optimizer.weight_decay",
    "steps": "training.total_steps",
    "max_steps": "training.total_steps",
    "num_steps": "training.total_steps",
    "iterations": "training.total_steps",
    "epochs": "training.total_steps",
    "batch_size": "training.batch_images",
    "batch": "training.batch_images",
    "image_size": "data.image_px",
    "resolution": "data.image_px",
    "layers": "network.depth",
    "num_layers": "network.depth",
    "hidden_size": "network.width",
    "dim": "network.width",
    "num_heads": "network.heads",
    "gpus": "resources.processes",
    "num_gpus": "resources.processes",
    "dataset": "data.source",
    "path": "data.source",
}
"""What other programs call a setting."""
_NEAR = 0.7
"""Share of characters in common from which on a name is a misspelt one: nonsense shares half of them with some name."""
_VERY_NEAR = 0.75
_FEWEST_CHARACTERS = 3
"""Of the beginning of a name, or of a word in it, that stands for the name."""


def nearest_setting(section: str | None, name: str, settings: Mapping[str, Sequence[str]]) -> str | None:
    """Return the setting that `section.name` was meant to be, or None; `settings` has the names of each section.

    With None for the section `name` stands where a section should.
    """
    if section is None:
        return _nearest(name, sorted(settings)) or _setting_elsewhere(name, settings)
    own = sorted(settings[section])
    if near := difflib.get_close_matches(name, own, n=1, cutoff=_VERY_NEAR):
        return f"{section}.{near[0]}"
    if elsewhere := _setting_elsewhere(name, settings):
        return elsewhere
    nearest = _nearest(name, own)
    return None if nearest is None else f"{section}.{nearest}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the one of `known` that is spelt like `name`, or the only one that begins with it or has it as a word."""
    if near := difflib.get_close_matches(name, known, n=1, cutoff=_NEAR):
        return near[0]
    parts = [other for other in known if len(name) >= _FEWEST_CHARACTERS and (other.startswith(name) or name in other.split("_"))]
    return parts[0] if len(parts) == 1 else None


def _setting_elsewhere(name: str, settings: Mapping[str, Sequence[str]]) -> str | None:
    """Return the setting of any section that has this name, or is known under it elsewhere."""
    same = [f"{section}.{field}" for section, fields in settings.items() for field in fields if field == name]
    return same[0] if len(same) == 1 else _SYNONYMS.get(name.lower())
