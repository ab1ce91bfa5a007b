"""HTML pages that are complete in themselves: for KFP's run page, MLflow's artifact view and a browser alike.

Promises: every value is escaped, images are embedded, nothing is fetched and no script runs. The pages' layout is in `templates/`, with one
style sheet.
"""

import base64
from collections.abc import Mapping
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from components.reports.flatten import flatten


def render(template: str, /, **values: object) -> str:
    """Return the page of `templates/TEMPLATE`; a value that the template uses and `values` lacks is an error."""
    return _environment().get_template(template).render(values)


def image_source(image: bytes, kind: Literal["png", "jpeg"] = "png") -> str:
    """Return the `src` that embeds an encoded image."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def flat_rows(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return names and texts of nested values, sorted; what is nested is named `outer.inner`."""
    return sorted(
        (name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)) for name, value in flatten(values).items()
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("components.reports")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
