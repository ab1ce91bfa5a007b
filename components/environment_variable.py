"""What is known of an environment variable: who reads it, what it means, and how the pods of the steps get it."""

from dataclasses import dataclass
from typing import Final, Literal

CONFIG_MAP: Final = "celebdit-config"
S3_SECRET: Final = "celebdit-s3"  # noqa: S105 - the name of an object
MLFLOW_SECRET: Final = "celebdit-mlflow"  # noqa: S105
KAGGLE_SECRET: Final = "celebdit-kaggle"  # noqa: S105
HUB_SECRET: Final = "celebdit-hub"  # noqa: S105

Source = Literal["celebdit-config", "celebdit-s3", "celebdit-mlflow", "celebdit-kaggle", "celebdit-hub"]
"""The ConfigMap or Secret that the pods of the steps get a variable from."""
Group = Literal["servers", "run", "command", "internal", "compose", "libraries"]


@dataclass(frozen=True)
class Variable:
    """One environment variable; `default` is what applies where it is not set, None if nothing does."""

    name: str
    group: Group
    read_by: str
    description: str
    default: str | None = None
    secret: bool = False
    pods: Source | None = None
    """Where the pods of the steps get it; None if they do not, or get it from the pipeline itself."""
    steps: tuple[str, ...] = ()
    """The steps whose pods get it there; none named: all."""
    is_file: bool = False
    """Whether its value is the path of a file, which a container has only if it is mounted."""
