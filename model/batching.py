"""How one global batch is shared out over processes and forward passes.

Promises: a plan divides the batch exactly, or the error says which batches would. Needs no torch, so that a configuration can be checked
fast.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """How one global batch is shared out: images per rank, per forward pass, and passes per step."""

    batch_images: int
    per_rank: int
    per_pass: int
    passes: int

    def slice_of(self, rank: int, pass_index: int) -> slice:
        """Return which positions of the global batch `rank` handles in pass `pass_index`."""
        start = rank * self.per_rank + pass_index * self.per_pass
        return slice(start, start + self.per_pass)


def plan_batch(batch_images: int, world_size: int, microbatch_images: int | None) -> BatchPlan:
    """Share `batch_images` out over `world_size` ranks, in passes of at most `microbatch_images`.

    Raises:
        ValueError: if the batch is not a multiple of the ranks; the message names the nearest batches that are.
    """
    if batch_images % world_size:
        below, above = batch_images // world_size * world_size, -(-batch_images // world_size) * world_size
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"batch_images {batch_images} cannot be shared by {world_size} processes: use {near}, or another number of processes"
        )
    per_rank = batch_images // world_size
    limit = min(microbatch_images or per_rank, per_rank)
    per_pass = next(size for size in range(limit, 0, -1) if per_rank % size == 0)
    return BatchPlan(batch_images=batch_images, per_rank=per_rank, per_pass=per_pass, passes=per_rank // per_pass)
