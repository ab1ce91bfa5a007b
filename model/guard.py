"""Detect non-finite losses and gradients on the device, on all ranks at once, before the weights are updated.

Promises: a non-finite loss on any rank makes the gradient norm non-finite on every rank, so all ranks skip the same update without
communication; nothing waits for the device before `first_nonfinite`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class NonFinite(ArithmeticError):
    """A loss or a gradient is not finite. The weights are still those of the step before."""

    def __init__(self, step: int, keys: list[str]) -> None:
        self.step = step
        self.keys = keys
        named = f"; images with a non-finite loss on this process: {', '.join(keys)}" if keys else ""
        super().__init__(f"loss or gradient is not finite at step {step}{named}")


def nan_propagating_sum(losses: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Sum `losses` such that one infinite or NaN loss makes every gradient NaN; finite ones are summed exactly."""
    # An infinite loss can have finite gradients. x * 0 is 0 for numbers and NaN otherwise, and a factor of exactly 1 changes no bit.
    return losses.sum() * (1 + (losses.detach() * 0).sum())


class Guard:
    """Records the first non-finite step of this process and the losses of its images."""

    def __init__(self, images_per_rank: int, device: torch.device) -> None:
        self.is_nonfinite = torch.zeros((), device=device)
        self._step = torch.zeros((), device=device, dtype=torch.int64)
        self._losses = torch.zeros(images_per_rank, device=device)

    def update(self, step: int, losses: Float[Tensor, " b"], gradient_norm: Float[Tensor, ""]) -> None:
        """Check the losses of this rank and the gradient norm over all ranks of `step`."""
        is_nonfinite = ~torch.isfinite(gradient_norm)
        is_first = is_nonfinite & (self.is_nonfinite == 0)
        self._step = torch.where(is_first, step, self._step)
        self._losses = torch.where(is_first, losses.float(), self._losses)
        self.is_nonfinite = torch.maximum(self.is_nonfinite, is_nonfinite.float())

    def first_nonfinite(self) -> tuple[int, list[int]] | None:
        """Return the first non-finite step and the positions of its non-finite losses on this rank, or None; waits for the device."""
        if float(self.is_nonfinite) == 0:
            return None
        positions = torch.nonzero(~torch.isfinite(self._losses))[:, 0].tolist()
        return int(self._step), [int(position) for position in positions]
