"""The network of a training with averaged weights in place of its own, for samples and held-out losses."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from model.config import TrainingConfig
from model.training_step import autocast


@contextmanager
def averaged_network(
    network: nn.Module, weights: Mapping[str, Tensor], training: TrainingConfig, device: torch.device
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """Yield `network` in evaluation mode as a function of images and timesteps, with `weights` by the names of its parameters."""

    def function(x: Tensor, t: Tensor) -> Tensor:
        with autocast(device, precision=training.precision):
            return torch.func.functional_call(network, dict(weights), (x, t))

    network.eval()
    try:
        # Blocks that were compiled in place would be compiled again for other weights and batches.
        with torch.compiler.set_stance("force_eager") if training.compile else nullcontext():
            yield function
    finally:
        network.train()
