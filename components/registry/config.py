"""The `registry` section: under which name versions are kept."""

from typing import Annotated

from pydantic import Field

from model.frozen_config import FrozenConfig, TextForm


class RegistryConfig(FrozenConfig):
    """The registered model."""

    model_name: Annotated[str, TextForm(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", example="celebdit-faces")] = Field(
        "celebdit", description="name in the MLflow model registry: at most 128 letters, digits, _, . and -"
    )
