"""What metrics are measured on, and what they return."""

from dataclasses import dataclass

import numpy as np
import torch

from components.evaluate.metrics.settings import MetricSettings
from components.evaluate.neighbours import Nearest
from components.features.moments import Statistics
from components.manifests import MetricInterval


@dataclass(frozen=True)
class Features:
    """The features of one side of the comparison, (n, d) each."""

    main: np.ndarray
    manifold: np.ndarray
    """Those for precision and recall."""
    logits: np.ndarray | None = None
    """Inception's class scores."""


@dataclass(frozen=True)
class Energies:
    """The energy per octave of the images on each side, (n, octaves) each; see `spectrum.py`."""

    generated: np.ndarray
    reference: np.ndarray


@dataclass(frozen=True)
class MetricInputs:
    """The features of the generated images and of the references; a part that no metric needs is empty or None."""

    config: MetricSettings
    generated: Features
    reference: Features
    moments: Statistics
    """Of the references, on `device`."""
    device: torch.device
    nearest: Nearest | None = None
    """The nearest training images; None also where the dataset has too few of them."""
    noise: np.ndarray | None = None
    """Features of images of pure noise, as many as were generated."""
    energies: Energies | None = None


@dataclass(frozen=True)
class Value:
    """One measured value, with its 95 % interval if it has one."""

    value: float
    interval: MetricInterval | None = None
