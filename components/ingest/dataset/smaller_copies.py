"""Find accepted images that look like smaller copies of others, such as thumbnails: proposed to be dropped, not dropped.

Promises: memory is some dozens of bytes for each image, and time is that of sorting; a copy whose hash differs in a few bits may be missed.
Images that are kept byte for byte have no hash unless near duplicates are looked for, and are not compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.ingest.dataset.ledger import Ledger

PROPOSED_BITS = 4
"""What `data.near_duplicate_bits` is proposed to be."""
_BITS = 3
_ROTATIONS = (0, 16, 32, 48)
_NEIGHBOURS = 4
_FEWEST_BITS_SET = 4
"""An image with fewer brighter places is even, and looks like every other even one."""
_SMALLER = 0.95
_PAGE = 4_000
_HASHED = """
SELECT i.perceptual_hash, s.width * s.height, s.n FROM images i JOIN seen s USING (n) WHERE i.perceptual_hash IS NOT NULL ORDER BY i.sha256
"""


@dataclass(frozen=True)
class SmallerCopy:
    """An image and the larger one that it looks like, by their names in the source; `sha256` is the smaller one's."""

    name: str
    sha256: str
    larger_name: str


def smaller_copies(ledger: Ledger, *, shown: int) -> tuple[int, list[SmallerCopy]]:
    """Return how many images look like smaller copies of others, and the first `shown` of them in the order of the source."""
    rows = [row for page in ledger.pages(_HASHED, _PAGE) for row in page]
    hashes = np.array([int(phash, 16) for phash, _, _ in rows], dtype=np.uint64)
    pixels = np.array([size for _, size, _ in rows], dtype=np.int64)
    numbers = [n for _, _, n in rows]
    pairs = sorted((numbers[small], numbers[large]) for small, large in find_smaller(hashes, pixels).items())
    return len(pairs), [_describe_pair(ledger, *pair) for pair in pairs[:shown]]


def find_smaller(hashes: np.ndarray, pixels: np.ndarray) -> dict[int, int]:
    """Return index of a smaller image -> index of a larger one with nearly the same 64-bit hash.

    Hashes that differ in few bits are likely to be neighbours once they are sorted, if not from the first bit on, then from another.
    """
    larger: dict[int, int] = {}
    if len(hashes) < 2 or pixels.min() >= _SMALLER * pixels.max():
        return larger
    for rotation in _ROTATIONS:
        turned = hashes << np.uint64(rotation) | hashes >> np.uint64((64 - rotation) % 64) if rotation else hashes
        order = np.lexsort((pixels, turned))
        for step in range(1, _NEIGHBOURS + 1):
            one, other = order[:-step], order[step:]
            near = np.bitwise_count(hashes[one] ^ hashes[other]) <= _BITS
            near &= np.bitwise_count(hashes[one]) >= _FEWEST_BITS_SET
            small = np.where(pixels[one] <= pixels[other], one, other)
            large = np.where(pixels[one] <= pixels[other], other, one)
            near &= pixels[small] < _SMALLER * pixels[large]
            _keep_largest(larger, small[near].tolist(), large[near].tolist(), pixels)
    return larger


def _keep_largest(larger: dict[int, int], small: Sequence[int], large: Sequence[int], pixels: np.ndarray) -> None:
    for one, other in zip(small, large, strict=True):
        if one not in larger or pixels[other] > pixels[larger[one]]:
            larger[one] = other


def _describe_pair(ledger: Ledger, n: int, larger_n: int) -> SmallerCopy:
    ((name, sha256),) = ledger.rows("SELECT source_name, sha256 FROM seen WHERE n = ?", n)
    ((larger_name,),) = ledger.rows("SELECT source_name FROM seen WHERE n = ?", larger_n)
    return SmallerCopy(name, sha256, larger_name)
