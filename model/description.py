"""`description.json` of a registered version: which model its weights are of, how it draws by itself, and what it was made from.

Promises: files without a format number, which versions registered by celebdit 0.1 before it had one hold, are read as format 1. The serving
code that is stored with a version reads it, so this imports nothing but `model`.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, JsonValue

from model.canonical import canonical_json
from model.config import DiffusionConfig, ModelSpec, NetworkConfig, Precision, SamplingConfig
from model.frozen_config import FrozenConfig


class VersionDescription(FrozenConfig):
    """A registered version besides its weights; `protocol` is None where the pipeline has not evaluated it."""

    format: Literal[1] = 1
    network: NetworkConfig
    diffusion: DiffusionConfig
    precision: Precision
    sampling: SamplingConfig
    checkpoint_digest: str
    dataset_digest: str | None = None
    licence: str
    metrics: dict[str, float] = Field(default_factory=dict)
    protocol: dict[str, JsonValue] | None = None
    weights_sha256: str
    is_student: bool = Field(False, exclude_if=lambda is_student: not is_student)
    """Whether it is a student of few steps, trained for the sampler and steps of `sampling` alone; its estimates are samples, no means."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the description in `path`.

        Raises:
            OSError: if it cannot be read. ValueError: if it is of another format, or names what this version does not know.
        """
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write it to `path` as canonical JSON."""
        path.write_bytes(canonical_json(self.model_dump(mode="json")))

    @property
    def model_spec(self) -> ModelSpec:
        """What a generator needs of it."""
        return ModelSpec(network=self.network, diffusion=self.diffusion, precision=self.precision)
