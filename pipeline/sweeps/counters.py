"""Random numbers of a sweep, a pure function of the seed and of what they are for.

Not those of `model/rng.py`: importing PyTorch takes seconds, and a sweep draws a few numbers on one machine.
"""

import hashlib

from model.canonical import canonical_json


def uniform(seed: int, *purpose: int | str) -> float:
    """Return a number in [0, 1)."""
    return int.from_bytes(_digest(seed, *purpose)[:7]) / 2**56


def integer(seed: int, *purpose: int | str) -> int:
    """Return a number in [0, 2**31)."""
    return int.from_bytes(_digest(seed, *purpose)[:8]) % 2**31


def _digest(*words: int | str) -> bytes:
    return hashlib.sha256(canonical_json(words)).digest()
