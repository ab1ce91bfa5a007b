"""How MLflow addresses a version of a registered model: `models:/NAME/3` and `models:/NAME@alias`. Imports no MLflow."""

import re
from dataclasses import dataclass

_PREFIX = "models:/"
_NAME_AND_VERSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,127})(?:@([A-Za-z0-9_-]{1,128})|/([0-9]{1,9}))?")


@dataclass(frozen=True)
class ModelUri:
    """A registered model, and a version of it (its number or an alias) if one is named."""

    name: str
    version: str | None

    @classmethod
    def parse(cls, text: str) -> "ModelUri | None":
        """Read `NAME`, `NAME/3` or `NAME@alias`, with or without `models:/` before it; return None for anything else."""
        matched = _NAME_AND_VERSION.fullmatch(text.removeprefix(_PREFIX))
        return None if matched is None else cls(matched[1], matched[2] or matched[3])
