"""The width that a user asks for a post-hoc EMA of. Imports no PyTorch, so that a command can check it before it starts anything."""

from components.errors import BadInput
from model.ema import check_sigma_rel


def check_width(sigma_rel: float) -> None:
    """Check that a power-function EMA of relative width `sigma_rel` exists.

    Raises:
        BadInput: naming the bounds.
    """
    try:
        check_sigma_rel(sigma_rel)
    except ValueError as error:
        raise BadInput(f"--sigma-rel: {error}", hint="usual widths are 0.02 to 0.25") from error
