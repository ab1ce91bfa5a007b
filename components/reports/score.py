"""A score as people read it: the value with half of its 95 % interval, in as many digits as the interval allows."""

import math

_NORMAL_QUANTILE = 1.959964
_MOST_DECIMALS = 6


def half_interval(std: float) -> float:
    """Return half of the 95 % interval of a value with this standard error."""
    return _NORMAL_QUANTILE * std


def score_text(value: float, std: float | None) -> str:
    """Return a score like `0.300 ± 0.020`: two digits of half its 95 % interval, or four of the value if its standard error is unknown."""
    if std is None:
        return f"{value:.4g}"
    half = half_interval(std)
    decimals = 3 if half <= 0 else min(_MOST_DECIMALS, max(0, 1 - math.floor(math.log10(half))))
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def score_sentence(key: str, value: float, std: float | None, noise: float | None) -> str:
    """Return `key` with its score, and what pure noise scores."""
    return f"{key} {score_text(value, std)}{'' if noise is None else f' (pure noise scores {noise:.3g})'}"
