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
_NEAR = 0.5
_VERY_NEAR = 0.75


def nearest_setting(section: str | None, name: str, settings: Mapping[str, Sequence[str]]) -> str | None:
    """Return the setting that `section.name` was meant to be, or None; `settings` has the names of each section.

    With None for the section `name` stands where a section should.
    """
    if section is None:
        near = difflib.get_close_matches(name, sorted(settings), n=1, cutoff=_NEAR)
        return near[0] if near else _elsewhere(name, settings)
    own = sorted(settings[section])
    if near := difflib.get_close_matches(name, own, n=1, cutoff=_VERY_NEAR):
        return f"{section}.{near[0]}"
    if elsewhere := _elsewhere(name, settings):
        return elsewhere
    near = difflib.get_close_matches(name, own, n=1, cutoff=_NEAR)
    return f"{section}.{near[0]}" if near else None


def _elsewhere(name: str, settings: Mapping[str, Sequence[str]]) -> str | None:
    """Return the setting of any section that has this name, or is known under it elsewhere."""
    same = [f"{section}.{field}" for section, fields in settings.items() for field in fields if field == name]
    return same[0] if len(same) == 1 else _SYNONYMS.get(name.lower())
