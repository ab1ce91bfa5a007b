"""The width that a user asks for a post-hoc EMA of. Imports no PyTorch, so that a command can check it before it starts anything."""

from components.errors import BadInput
from model.ema import SIGMA_REL_LIMIT


def check_width(sigma_rel: float) -> None:
    """Check that a power-function EMA of relative width `sigma_rel` exists.

    Raises:
        BadInput: naming the bounds.
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise BadInput(f"--sigma-rel {sigma_rel:g} must lie between 0 and {SIGMA_REL_LIMIT:.4f}", hint="usual widths are 0.02 to 0.25")
