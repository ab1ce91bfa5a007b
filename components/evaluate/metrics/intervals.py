"""95 % intervals of metrics that are shares of images."""

import math

from components.manifests import NORMAL_QUANTILE, MetricInterval


def interval_of_share(share: float, trials: int) -> MetricInterval:
    """Return the 95 % interval of a share of independent trials (Wilson 1927), which is not empty at 0 and 1 either."""
    spread = NORMAL_QUANTILE**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return MetricInterval(low=max(centre - half, 0.0), high=min(centre + half, 1.0), std=half / NORMAL_QUANTILE)
