"""The `registry` section: under which name versions are kept."""

from pydantic import Field

from model.config import FrozenConfig


class RegistryConfig(FrozenConfig):
    """The registered model."""

    model_name: str = Field("celebdit", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$", description="name in the MLflow model registry")
