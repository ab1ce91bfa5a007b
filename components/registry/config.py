"""The `registry` section: under which name versions are kept."""

import re
from typing import Annotated

from pydantic import Field

from components.errors import BadInput, shorten
from model.frozen_config import FrozenConfig, TextForm

_FORM = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"


def check_model_name(name: str) -> str:
    """Return `name` if a registered model can have it.

    Raises:
        BadInput: if not: such a name can be in neither MLflow's addresses nor the keys of the object store.
    """
    if not re.fullmatch(_FORM, name):
        raise BadInput(
            f"{shorten(repr(name))} cannot be the name of a model",
            hint="use up to 128 letters, digits, _, . and -, like celebdit-faces",
        )
    return name


class RegistryConfig(FrozenConfig):
    """The registered model."""

    model_name: Annotated[str, TextForm(_FORM, example="celebdit-faces")] = Field(
        "celebdit", description="name in the MLflow model registry: at most 128 letters, digits, _, . and -"
    )
