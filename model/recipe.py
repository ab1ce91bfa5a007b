"""What a run is trained with: the sections of the configuration that decide its numbers, together."""

from dataclasses import dataclass

from model.config import DiffusionConfig, NetworkConfig, OptimizerConfig, SamplingConfig, TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that the numbers of a run depend on, besides its data."""

    network: NetworkConfig
    diffusion: DiffusionConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig
