"""A network that a training step updates: its forward pass as the ranks run it, its gradients, and its optimiser.

Promises: with several ranks the gradients are summed in the same order from the first step on, so that a resumed run sums as an
uninterrupted one does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.batching import BatchPlan
from model.compilation import compile_network
from model.distributed import World
from model.optim import clip_gradients, guarded_step, set_learning_rate


def begins_without_gradients(plan: BatchPlan, world: World, device: torch.device) -> bool:
    """Return whether a step begins without gradients, which saves passes over them, and not with zeros that its own are added to.

    DistributedDataParallel (torch 2.15) then multiplies gradients by 1 / ranks and does not divide them: the same for powers of two alone.
    """
    return plan.passes == 1 and (world.size == 1 or (device.type == "cpu" and world.size.bit_count() == 1))


class TrainedNetwork:
    """A network and the optimiser of its parameters; `forward` is what a step calls."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.AdamW) -> None:
        self.forward: nn.Module = network
        self._network = network
        self._parameters = list(network.parameters())
        self._optimizer = optimizer

    def wrap(self, world: World, device: torch.device, plan: BatchPlan, *, compiled: bool) -> None:
        """Compile the forward pass if asked for, and wrap it for several ranks."""
        # Compiled inside the wrapper, so that gradient accumulation can still skip the wrapper's synchronisation.
        forward = compile_network(self._network, by_block=True) if compiled else self._network
        if world.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            # A static graph cannot begin inside no_sync (torch 2.15: INTERNAL ASSERT in the reducer), so accumulation goes without.
            forward = DistributedDataParallel(
                forward, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True, static_graph=plan.passes == 1
            )
        self.forward = forward

    def settle_gradient_buckets(self, inputs: tuple[Tensor, ...], autocast: Callable[[], AbstractContextManager[None]]) -> None:
        """Run two passes of `inputs` that change nothing, each inside `autocast`.

        DistributedDataParallel rebuilds its gradient buckets after the first pass. With three ranks or more the order of a sum depends on
        the buckets, so a resumed run would sum its first gradients in another order than an uninterrupted one.
        """
        for _ in range(2):
            with autocast():
                torch.autograd.backward(self.forward(*inputs).sum())
        self._optimizer.zero_grad(set_to_none=False)

    def begin_step(self, rate: float, *, set_to_none: bool) -> None:
        """Set the learning rate and clear the gradients."""
        set_learning_rate(self._optimizer, rate)
        self._optimizer.zero_grad(set_to_none=set_to_none)

    def no_sync(self, *, is_last_pass: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and backward pass, which sums gradients over the ranks in the last pass of a step alone."""
        waits = not is_last_pass and isinstance(self.forward, DistributedDataParallel)
        return self.forward.no_sync() if waits else nullcontext()  # type: ignore[operator]

    def clip(self, max_norm: float) -> Float[Tensor, ""]:
        """Scale the gradients down to the norm `max_norm` and return the norm before."""
        return clip_gradients(self._parameters, max_norm)

    def update(self, is_nonfinite: Float[Tensor, ""]) -> None:
        """Update the weights unless `is_nonfinite` is 1."""
        guarded_step(self._optimizer, is_nonfinite)
