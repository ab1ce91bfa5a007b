"""Numbers that are not numbers are seen at once, and finite ones are left exactly as they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.guard import Guard, nan_propagating_sum

CPU = torch.device("cpu")


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_finite_losses_are_summed_exactly_with_their_gradient(values: list[float]) -> None:
    losses = torch.tensor(values, requires_grad=True)
    total = nan_propagating_sum(losses)
    total.backward()
    assert float(total.detach()) == float(losses.detach().sum())
    assert torch.equal(losses.grad, torch.ones(len(values)))


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_one_bad_loss_spoils_every_gradient(bad: float) -> None:
    losses = torch.tensor([1.0, bad, 2.0], requires_grad=True)
    nan_propagating_sum(losses).backward()
    assert losses.grad.isnan().all()


def test_the_first_bad_step_is_remembered_with_its_images() -> None:
    guard, good, bad = Guard(3, CPU), torch.tensor(1.0), torch.tensor(float("nan"))
    guard.update(5, torch.tensor([1.0, 2.0, 3.0]), good)
    assert guard.first_nonfinite() is None
    assert float(guard.is_nonfinite) == 0
    guard.update(6, torch.tensor([1.0, float("inf"), 3.0]), bad)
    guard.update(7, torch.tensor([float("nan"), 2.0, 3.0]), bad)
    guard.update(8, torch.tensor([1.0, 2.0, 3.0]), good)
    assert guard.first_nonfinite() == (6, [1])
    assert float(guard.is_nonfinite) == 1


def test_a_gradient_alone_can_be_bad() -> None:
    guard = Guard(2, CPU)
    guard.update(0, torch.tensor([1.0, 2.0]), torch.tensor(float("inf")))
    assert guard.first_nonfinite() == (0, [])
