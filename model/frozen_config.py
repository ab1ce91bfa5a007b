"""Base of all configuration models, and text fields that have a form.

Promises: validation is strict: "8" and 8.0 are not 8, NaN is not a number, an unknown key is an error; all problems are reported, not only
the first.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class FrozenConfig(BaseModel):
    """Base of every configuration section: strict types, no extra keys, finite numbers, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def problems(self) -> Iterable[str]:
        """Return what is wrong with fields that are valid by themselves but not together, one line each."""
        return ()

    @model_validator(mode="after")
    def _refuse_problems(self) -> Self:
        if problems := list(self.problems()):
            raise ValueError("\n".join(problems))
        return self


@dataclass(frozen=True)
class TextForm:
    """The form of a text field, for `Annotated[str, TextForm(...)]`. Its error shows the example, not the regular expression."""

    regex: str
    """Matches the whole text."""
    example: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, text: str) -> str:
        if re.fullmatch(self.regex, text) is None:
            raise PydanticCustomError("text_form", "must look like {example}", {"example": self.example})
        return text
