"""HTML pages that are complete in themselves: for KFP's run page, MLflow's artifact view and a browser alike.

Promises: every value is escaped, images are embedded, nothing is fetched and no script runs. The pages' layout is in `templates/`, with one
style sheet.
"""

import base64
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, /, **values: object) -> str:
    """Return the page of `templates/TEMPLATE`; a value that the template uses and `values` lacks is an error."""
    return _environment().get_template(template).render(values)


def image_source(image: bytes, kind: Literal["png", "jpeg"] = "png") -> str:
    """Return the `src` that embeds an encoded image."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def flat_rows(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return names and texts of nested values, sorted; what is nested is named `outer.inner`."""
    return sorted(_flatten(values))


def _flatten(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@cache
def _environment() -> Environment:
    loader = PackageLoader("components.reports")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
