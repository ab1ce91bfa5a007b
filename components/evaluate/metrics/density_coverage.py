"""Density and coverage (Naeem et al. 2020): like precision and recall, but one outlier among the references does not count for many."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from components.evaluate.metrics.inputs import MetricInputs, Value
from components.evaluate.metrics.intervals import interval_of_share
from components.evaluate.metrics.table import DENSITY_NEIGHBOURS
from components.manifests import NORMAL_QUANTILE, MetricInterval

_CHUNK = 1024


def measure(inputs: MetricInputs) -> tuple[Value, ...]:
    """Return density, of the generated images (about 1 if they are like the references), and coverage, a share of the references."""
    generated, reference = (_tensor_on(rows, inputs.device) for rows in (inputs.generated.manifold, inputs.reference.manifold))
    centre = reference.mean(0)
    per_image, covered = density_and_coverage(generated - centre, reference - centre)
    density, std = float(per_image.mean()), float(per_image.std()) / math.sqrt(len(per_image))
    interval = MetricInterval(low=max(density - NORMAL_QUANTILE * std, 0.0), high=density + NORMAL_QUANTILE * std, std=std)
    return Value(density, interval), Value(covered, interval_of_share(covered, len(reference)))


def density_and_coverage(generated: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " n"], float]:
    """Return the density at each generated image (equation 3) and the share of references that have one in their ball (equation 4)."""
    radii = torch.cat([torch.cdist(part, reference).kthvalue(DENSITY_NEIGHBOURS + 1, dim=1).values for part in reference.split(_CHUNK)])
    counts = torch.zeros(len(generated), device=generated.device)
    covered = 0
    for part, radius in zip(reference.split(_CHUNK), radii.split(_CHUNK), strict=True):
        inside = torch.cdist(part, generated) < radius[:, None]
        counts += inside.sum(0)
        covered += int(inside.any(1).sum())
    return counts / DENSITY_NEIGHBOURS, covered / len(reference)


def _tensor_on(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)
