"""How a global batch is shared out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.batching import plan_batch


@given(st.integers(1, 64), st.integers(1, 32), st.integers(1, 80) | st.none())
def test_a_plan_covers_every_position_once(per_rank: int, world_size: int, microbatch: int | None) -> None:
    plan = plan_batch(per_rank * world_size, world_size, microbatch)
    covered = [
        position for rank in range(world_size) for i in range(plan.passes) for position in range(*plan.slice_of(rank, i).indices(10**9))
    ]
    assert sorted(covered) == list(range(per_rank * world_size))
    assert microbatch is None or plan.per_pass <= microbatch


@pytest.mark.parametrize(("batch", "world", "near"), [(31, 2, "30 or 32"), (3, 8, "use 8"), (100, 48, "96 or 144")])
def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can(batch: int, world: int, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        plan_batch(batch, world, None)
