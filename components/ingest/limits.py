"""Bounds on what is read of a source (`Budget`) and on what one image may cost (`Limits`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How much of a source is read before it, or an entry of it, is refused."""

    max_image_bytes: int
    max_total_bytes: int
    max_entries: int
    max_ratio: float


@dataclass(frozen=True)
class Limits:
    """What an image may cost, and what it becomes."""

    image_px: int
    max_image_bytes: int
    max_image_pixels: int
    max_ratio: float
    perceptual_hash: bool = False
    max_image_s: float = 10.0
    """Processor time."""
