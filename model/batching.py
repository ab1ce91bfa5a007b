"""Division of a global batch over ranks and forward passes.

Promises: a plan divides the batch exactly, or the error names the nearest batches that divide. Needs no PyTorch, so that a configuration
can be checked fast.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """Division of one global batch: images per rank, images per forward pass, and passes per step."""

    batch_images: int
    per_rank: int
    per_pass: int
    passes: int

    def slice_of(self, rank: int, pass_index: int) -> slice:
        """Return the positions of the global batch that `rank` handles in pass `pass_index`."""
        start = rank * self.per_rank + pass_index * self.per_pass
        return slice(start, start + self.per_pass)


def plan_batch(batch_images: int, world_size: int, microbatch_images: int | None) -> BatchPlan:
    """Divide `batch_images` over `world_size` ranks, in passes of at most `microbatch_images`.

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
